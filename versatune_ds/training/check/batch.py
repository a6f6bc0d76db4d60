"""Check the arithmetic of batches on N x M processes, and DeepSpeed's settings against the recipe."""

from __future__ import annotations

from collections.abc import Iterator

from versatune_ds.training.check.finding import Finding, fail, failures_of, ok
from versatune_ds.training.check.subject import Subject
from versatune_ds.training.ds_checks import check_keys
from versatune_ds.training.ds_settings import num_micro_steps, zero_stage


def check_batch(subject: Subject) -> Iterator[Finding]:
    """Divide a batch among processes, and say what a step holds."""
    train, world_size = subject.config.train, subject.world_size
    place = f"{subject.num_nodes} x {subject.gpus_per_node} processes"
    try:
        num_steps = num_micro_steps(train, world_size=world_size)
        found = (
            f"{train.rows_per_batch} rows = {num_steps} micro-steps x {train.rows_per_micro_batch} rows x {place}, "
            f"{train.rows_per_batch * subject.config.data.row_tokens:,} tokens a step"
        )
        yield ok("batch", "train.rows_per_batch", found)
    except ValueError as error:
        yield from failures_of(error, check="batch")


def check_deepspeed(subject: Subject) -> Iterator[Finding]:
    """Derive DeepSpeed's config, which raises ValueError where it contradicts the recipe."""
    train, settings = subject.config.train, subject.ds_config
    if train.precision == "fp16" and not subject.num_gpus_here and subject.request.gpu_memory_gib is None:
        todo = "use bf16, or say --gpu-memory if the nodes have GPUs"
        yield fail("precision", "train.precision", "fp16 needs a GPU, and none is seen here", todo)
    try:
        check_keys(settings)
    except ValueError as error:
        yield from failures_of(error, check="deepspeed")
        return
    yield ok("deepspeed", "train.deepspeed", f"ZeRO stage {zero_stage(settings)}, {train.precision}")
