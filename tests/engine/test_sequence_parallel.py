"""Ranks that share rows train on the same losses and gradients as ranks that have complete ones."""

import pytest
import torch
from one_batch import LEARNING_RATE, NUM_EXAMPLES, STEPS, build, micro_batch, rows_of
from ranks import run_ranks

from versatune_ds.config import TrainConfig
from versatune_ds.data.row_slices import row_share, slice_batch
from versatune_ds.engine.ds_settings import deepspeed_config
from versatune_ds.engine.engine import Engine, share_process_group
from versatune_ds.model.domain_model import DomainModel
from versatune_ds.model.sequence_parallel import split_attention


def make_engine(world, *, num_slices, zero, **settings):
    share_process_group()
    train = TrainConfig(
        steps=STEPS, rows_per_batch=NUM_EXAMPLES // 2, sequence_parallel=num_slices, precision="fp32",
        learning_rate=LEARNING_RATE, learning_rate_schedule="constant", warmup_fraction=0.0,
        deepspeed={"zero_optimization": zero},
    )  # fmt: skip
    causal_lm = build(**settings)
    group = split_attention(causal_lm, wanted="auto", num_slices=num_slices, world=world)
    engine = Engine(
        DomainModel(causal_lm, num_domains=2, sequence_group=group), train=train,
        ds_config=deepspeed_config(train, world_size=world.world_size), world=world, device=torch.device("cpu"), seed=0,
    )  # fmt: skip
    engine.check_slices()
    return engine


def micro_batches(world, *, num_slices):
    """Return this rank's micro-batches of one row, whose second example is of another domain."""
    rows = rows_of("packed")
    num_loss_tokens = sum(int((row["labels"] != -100).sum()) for row in rows)
    for row in rows:
        row["domain_ids"] = ((row["positions"] == 0).cumsum(1) == 2).long()
    share = row_share(rank=world.rank, world_size=world.world_size, num_slices=num_slices)
    own = rows[share.group :: share.num_groups]
    return [slice_batch(micro_batch([row], num_loss_tokens_global=num_loss_tokens), share) for row in own]


def trained(world, *, num_slices, zero, **settings):
    """Return the losses and gradient norms of each step, the losses by domain, and the weights after the last."""
    engine = make_engine(world, num_slices=num_slices, zero=zero, **settings)
    lines = []
    for step in range(1, STEPS + 1):
        batches = micro_batches(world, num_slices=num_slices)
        result = engine.train_step(batches, step=step)
        sums = torch.cat([result.loss_sum[None], *(part.double() for part in result.by_domain)])
        torch.distributed.all_reduce(sums)
        lines.append([*(sums / result.num_loss_tokens_global).tolist(), engine.grad_norm()])
    return lines, {name: weight.numpy() for name, weight in engine.full_weights().items()}


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "world_size"), [(0, 4), (2, 2), (3, 2)])
def test_sequence_parallel_has_the_losses_and_gradients_of_complete_rows(stage, world_size, tmp_path):
    """With N = 1, 2 and, on four ranks, 4, which repeats the two key heads; with checkpointing under ZeRO-3."""
    sizes = [size for size in (1, 2, 4) if size <= world_size]

    def all_sizes(world):
        settings = {"zero": {"stage": stage}, "gradient_checkpointing": stage == 3}
        return [trained(world, num_slices=size, **settings) for size in sizes]

    (expected, expected_weights), *others = run_ranks(all_sizes, world_size=world_size, folder=tmp_path)[0]
    for size, (lines, weights) in zip(sizes[1:], others, strict=True):
        assert torch.tensor(lines) == pytest.approx(torch.tensor(expected), abs=1e-5), size
        for name, values in expected_weights.items():
            assert weights[name] == pytest.approx(values, abs=1e-5), (size, name)
