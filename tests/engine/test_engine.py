"""What the engine passes to the model: the scale of the gradients, known before the forward pass."""

from types import SimpleNamespace

import pytest
import torch

from versatune_ds.data.batch import Batch
from versatune_ds.distributed import World
from versatune_ds.engine.engine import Engine
from versatune_ds.model.domain_model import DomainLosses


class FakeDeepSpeedEngine:
    """Stand-in that multiplies the loss as DeepSpeed's backward does, and records the arguments of forward passes."""

    def __init__(self, *, loss_scale, num_micro_batches):
        self.optimizer = SimpleNamespace(param_groups=[], loss_scale=loss_scale, overflow=False)
        self.divisor, self.parameter = num_micro_batches, torch.ones((), requires_grad=True)
        self.grad_scales, self.factors = [], []
        self.module = SimpleNamespace(router_loss=None, expert_load=None)

    def train(self):
        pass

    def __call__(self, *, grad_scale, **inputs):
        self.grad_scales.append(grad_scale)
        loss_sum = self.parameter * 3.0
        loss_sum.register_hook(lambda factor: self.factors.append(float(factor)))
        nothing_K = torch.zeros(1)
        return DomainLosses(loss_sum, nothing_K, nothing_K, nothing_K, nothing_K, torch.zeros(()))

    def backward(self, loss):
        (loss.float() * self.optimizer.loss_scale / self.divisor).backward()

    def step(self):
        pass

    def was_step_applied(self):
        return True


def batch(num_loss_tokens_global):
    ids = torch.zeros(1, 4, dtype=torch.int64)
    return Batch(
        input_ids=ids, labels=ids, positions=ids, domain_ids=ids, segment_ids=ids, valid_index=ids[0], num_valid=4,
        cu_seqlens=torch.tensor([0, 4], dtype=torch.int32), longest_segment=4,
        num_loss_tokens_global=num_loss_tokens_global,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("precision", "loss_scale", "expected"), [("fp16", 512.0, 512 * 3 / 2000), ("bf16", 1.0, 3 / 2000)]
)
def test_the_forward_pass_gets_the_factor_of_the_later_backward_pass(precision, loss_scale, expected):
    engine = Engine.__new__(Engine)
    engine.deepspeed_engine = FakeDeepSpeedEngine(loss_scale=loss_scale, num_micro_batches=2)
    engine.train_settings = SimpleNamespace(
        precision=precision, learning_rate=1.0, warmup_steps=0, steps=10, min_learning_rate=0.0, schedule="constant"
    )
    engine.world, engine.device, engine.seed = (
        World(rank=0, world_size=3, local_rank=0, launcher="test"),
        torch.device("cpu"),
        1,
    )
    engine.train_step([batch(2000), batch(2000)], step=1)
    assert engine.deepspeed_engine.grad_scales == pytest.approx([expected] * 2)
    assert engine.deepspeed_engine.factors == pytest.approx([expected] * 2)
