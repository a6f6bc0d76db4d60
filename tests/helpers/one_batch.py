"""Train a tiny model with DeepSpeed on one small global batch, packed into rows in several ways."""

from __future__ import annotations

import torch
from tiny_models import VOCAB, build_arguments, pack

from versatune_ds.config import TrainConfig
from versatune_ds.data.batch import Batch, padded_valid_index, segment_bounds
from versatune_ds.engine.ds_settings import deepspeed_config
from versatune_ds.engine.engine import Engine, share_process_group
from versatune_ds.model.build import build_causal_lm
from versatune_ds.model.domain_model import DomainModel

STEPS, NUM_EXAMPLES, LEARNING_RATE = 3, 8, 1e-2
ROW_TOKENS = {"packed": 24, "one by one": 12}


def build(precision="fp32", **settings):
    """Return a small Llama with tied embeddings, always with the same weights."""
    arguments = build_arguments("llama", tie_word_embeddings=True)
    model = arguments["model"].model_copy(update=settings)
    return build_causal_lm(**{**arguments, "precision": precision, "model": model})


def examples():
    """Return the examples of the global batch, of different lengths; every step trains on them."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(3, 12, (NUM_EXAMPLES,), generator=generator).tolist()
    return [torch.randint(3, VOCAB, (length,), generator=generator).tolist() for length in lengths]


def rows_of(layout):
    """Return the rows of the global batch, with two examples per row, or one."""
    per_row = 2 if layout == "packed" else 1
    groups = [examples()[i : i + per_row] for i in range(0, NUM_EXAMPLES, per_row)]
    return [pack(group, row_tokens=ROW_TOKENS[layout]) for group in groups]


def micro_batch(rows, *, num_loss_tokens_global):
    """Return a batch of rows as the loader returns it."""
    columns = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    valid_index, num_valid = padded_valid_index(columns["labels"].reshape(-1).numpy())
    cu_seqlens, longest_segment = segment_bounds(columns["positions"].numpy())
    return Batch(
        **columns, segment_ids=torch.zeros_like(columns["labels"]), valid_index=torch.from_numpy(valid_index),
        num_valid=num_valid, cu_seqlens=torch.from_numpy(cu_seqlens), longest_segment=longest_segment,
        num_loss_tokens_global=num_loss_tokens_global,
    )  # fmt: skip


def micro_batches(layout, *, world, rows_per_micro_batch):
    """Return this rank's slice of the global batch."""
    rows = rows_of(layout)
    num_loss_tokens_global = sum(int((row["labels"] != -100).sum()) for row in rows)
    own = rows[world.rank :: world.world_size]
    return [
        micro_batch(own[i : i + rows_per_micro_batch], num_loss_tokens_global=num_loss_tokens_global)
        for i in range(0, len(own), rows_per_micro_batch)
    ]


def make_engine(
    world, *, layout="packed", rows_per_micro_batch=1, zero, settings=None, precision="fp32", device="cpu", **given
):
    """Return the engine of a run; `zero` is DeepSpeed's zero_optimization, `given` the rest of its config."""
    share_process_group()
    train = TrainConfig(
        steps=STEPS, rows_per_batch=NUM_EXAMPLES // (2 if layout == "packed" else 1), precision=precision,
        rows_per_micro_batch=rows_per_micro_batch, learning_rate=LEARNING_RATE, learning_rate_schedule="constant",
        warmup_fraction=0.0, deepspeed={"zero_optimization": zero, **given},
    )  # fmt: skip
    ds_config = deepspeed_config(train, world_size=world.world_size)
    model = DomainModel(build(precision, **(settings or {})).to(device), num_domains=1)
    return Engine(model, train=train, ds_config=ds_config, world=world, device=torch.device(device), seed=0)


def engine_losses(engine, *, layout="packed", rows_per_micro_batch=1, first=1, last=STEPS):
    """Train from step `first` to step `last` and return the loss of each step over all ranks."""
    losses = []
    for step in range(first, last + 1):
        batches = micro_batches(layout, world=engine.world, rows_per_micro_batch=rows_per_micro_batch)
        result = engine.train_step(batches, step=step)
        torch.distributed.all_reduce(result.loss_sum)
        losses.append(result.loss_sum.item() / result.num_loss_tokens_global)
    return losses
