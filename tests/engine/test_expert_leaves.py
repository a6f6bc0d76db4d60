"""Mixtures of experts under DeepSpeed: equal losses under ZeRO-0 and ZeRO-3, however the experts are stored."""

import pytest
import torch
from expert_models import MODELS
from one_batch import micro_batch
from ranks import run_ranks
from tiny_models import A, B, C, build_arguments, pack
from torch import nn

from versatune_ds.config import TrainConfig
from versatune_ds.engine.ds_settings import deepspeed_config
from versatune_ds.engine.engine import Engine, share_process_group
from versatune_ds.engine.expert_leaves import mark_expert_layers
from versatune_ds.model.build import build_causal_lm
from versatune_ds.model.domain_model import DomainModel

ROWS = [[A], [B, C], [C, A], [A, B]]
HIDDEN = 32


class ListedExperts(nn.Module):
    """A layer with a module for each expert, as in models with code of their own; ranks use different ones in turn."""

    def __init__(self, rank):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN, bias=False) for _ in range(3))
        self.next = rank

    def forward(self, hidden):
        self.next += 1
        return self.experts[self.next % 3](hidden)


def listed(model, *, rank=0):
    torch.manual_seed(1)
    for layer in model.causal_lm.get_decoder().layers:
        layer.mlp = ListedExperts(rank)
    return model


def losses_of_steps(model, *, stage, world):
    train = TrainConfig(
        steps=3, rows_per_batch=4, precision="fp32", learning_rate=0.01, learning_rate_schedule="constant",
        warmup_fraction=0.0, deepspeed={"zero_optimization": {"stage": stage}},
    )  # fmt: skip
    ds_config = deepspeed_config(train, world_size=world.world_size)
    engine = Engine(model, train=train, ds_config=ds_config, world=world, device=torch.device("cpu"), seed=0)
    rows = [pack(row) for row in ROWS]
    total = sum(int((row["labels"] != -100).sum()) for row in rows)
    own = rows[world.rank :: world.world_size]
    batches = [micro_batch([row], num_loss_tokens_global=total) for row in own]
    losses = [float(engine.train_step(batches, step=step).loss_sum) for step in (1, 2)]
    engine.close()
    return losses


def build(model_type):
    keys = MODELS.get(model_type, {})
    return DomainModel(build_causal_lm(**build_arguments(model_type, **keys)), num_domains=1)


def test_only_a_layer_with_a_list_of_experts_is_marked():
    assert mark_expert_layers(listed(build("llama"))) == 2
    assert [mark_expert_layers(build(name)) for name in ("llama", "mixtral", "deepseek_v3")] == [0, 0, 0]


@pytest.mark.slow
def test_experts_of_every_kind_train_to_the_same_losses_under_zero_0_and_3(tmp_path):
    def losses(world):
        share_process_group()
        # Without mixtral: test_router_loss.py compares its steps with plain PyTorch's.
        makers = {name: lambda name=name: build(name) for name in MODELS if name != "mixtral"}
        makers["listed"] = lambda: listed(build("llama"), rank=world.rank)
        return {
            name: [losses_of_steps(make(), stage=stage, world=world) for stage in (0, 3)]
            for name, make in makers.items()
        }

    for found in run_ranks(losses, world_size=2, folder=tmp_path):
        for name, (replicated, divided) in found.items():
            assert divided == pytest.approx(replicated, rel=1e-5), name
            assert replicated[-1] < replicated[0]
