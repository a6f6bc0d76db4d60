"""The head under DeepSpeed: training and evaluation on two ranks equal a plain model on one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from versatune_ds.distributed import World
from versatune_ds.kernels import DomainLossHead

deepspeed = pytest.importorskip("deepspeed")

V, D, K, STEPS, TOKENS_PER_RANK = 67, 16, 3, 3, 24
LOSS_WEIGHTS_K = torch.tensor([1.0, 2.0, 0.5])


class TinyModel(nn.Module):
    """A model of an embedding, a mixing layer and the head, which may be tied to the embedding."""

    def __init__(self, *, is_tied: bool, is_checkpointed: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(V, D)
        self.mix = nn.Linear(D, D)
        linear = nn.Linear(D, V, bias=False)
        if is_tied:
            linear.weight = self.embedding.weight
        self.lm_head = DomainLossHead.from_linear(linear, chunk_mib=0.002)
        self.is_checkpointed = is_checkpointed

    def hidden(self, tokens_N: torch.Tensor) -> torch.Tensor:
        embedded_ND = self.embedding(tokens_N)
        if self.is_checkpointed:
            return checkpoint(lambda x: torch.tanh(self.mix(x)), embedded_ND, use_reentrant=False)
        return torch.tanh(self.mix(embedded_ND))

    def forward(self, tokens_N: torch.Tensor, *arguments: torch.Tensor, **options: Any) -> Any:
        return self.lm_head(self.hidden(tokens_N), *arguments, **options)


def batch_of(step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return tokens, labels (another number masked on each rank) and domain ids of one rank's slice."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    tokens_N, labels_N = torch.randint(0, V, (2, TOKENS_PER_RANK), generator=generator)
    labels_N[: 5 + 4 * rank] = -100
    return tokens_N, labels_N, torch.randint(0, K, (TOKENS_PER_RANK,), generator=generator)


def plan_of(labels_N: torch.Tensor) -> dict[str, Any]:
    valid = (labels_N != -100).nonzero()[:, 0]
    return {"valid_index": torch.cat([valid, torch.tensor([0, 0])]), "num_valid": len(valid), "num_domains": K}


def num_loss_tokens(step: int, world_size: int) -> int:
    return sum(int((batch_of(step, rank)[1] != -100).sum()) for rank in range(world_size))


def plain_losses(world_size: int, *, is_tied: bool) -> list[float]:
    """Return the losses of training one process on all slices with complete logits; the last one from evaluation."""
    model = TinyModel(is_tied=is_tied, is_checkpointed=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for step in range(STEPS + 1):
        loss = torch.tensor(0.0)
        for rank in range(world_size):
            tokens_N, labels_N, domain_ids_N = batch_of(step, rank)
            logits_NV = model.lm_head(model.hidden(tokens_N))
            token_losses_N = functional.cross_entropy(logits_NV, labels_N, reduction="none")
            loss = loss + (token_losses_N * LOSS_WEIGHTS_K[domain_ids_N]).sum() / num_loss_tokens(step, world_size)
        losses.append(loss.item())
        if step < STEPS:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return losses


def deepspeed_losses(world: World, *, stage: int, is_tied: bool, is_checkpointed: bool) -> list[float]:
    """Return the same losses from DeepSpeed, each rank with its slice; the last one from evaluation."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    model = TinyModel(is_tied=is_tied, is_checkpointed=is_checkpointed)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,  # the default of DeepSpeed 0.19.8 is 1.0
    }
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    losses = []
    for step in range(STEPS + 1):
        tokens_N, labels_N, domain_ids_N = batch_of(step, world.rank)
        options = {**plan_of(labels_N), "loss_weights_K": LOSS_WEIGHTS_K}
        if step < STEPS:
            result = engine(tokens_N, labels_N, domain_ids_N, **options)
            # DeepSpeed divides gradients by the number of ranks.
            engine.backward(result.loss * world.world_size / num_loss_tokens(step, world.world_size))
            engine.step()
        else:
            engine.eval()
            with torch.no_grad():
                result = engine(tokens_N, labels_N, domain_ids_N, **options)
        total = result.loss.detach().clone()
        torch.distributed.all_reduce(total)
        losses.append(total.item() / num_loss_tokens(step, world.world_size))
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("is_tied", [False, True], ids=["own_head", "tied_head"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_train_and_evaluate_like_one_plain_process(stage: int, is_tied: bool, tmp_path: Path) -> None:
    results = run_ranks(
        lambda world: deepspeed_losses(world, stage=stage, is_tied=is_tied, is_checkpointed=False),
        world_size=2,
        folder=tmp_path,
    )
    expected = plain_losses(2, is_tied=is_tied)
    for losses in results:
        assert losses == pytest.approx(expected, rel=2e-6)


@pytest.mark.slow
def test_gradient_checkpointing_under_zero_3_changes_nothing(tmp_path: Path) -> None:
    results = run_ranks(
        lambda world: deepspeed_losses(world, stage=3, is_tied=False, is_checkpointed=True),
        world_size=2,
        folder=tmp_path,
    )
    assert results[0] == pytest.approx(plain_losses(2, is_tied=False), rel=2e-6)
