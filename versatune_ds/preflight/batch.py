"""Check the arithmetic of batches on N x M processes, and DeepSpeed's settings against the recipe."""

from __future__ import annotations

from collections.abc import Iterator

from versatune_ds.engine.ds_checks import check_deepspeed_settings, check_model_settings
from versatune_ds.engine.ds_settings import num_micro_steps, zero_stage
from versatune_ds.preflight.finding import Finding, failures_of, ok
from versatune_ds.preflight.subject import Subject


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
    """Check DeepSpeed's settings; ValueError where they contradict the recipe, or what devices and model can do."""
    train, settings = subject.config.train, subject.ds_config
    has_gpu = subject.num_gpus_here or subject.request.gpu_memory_gib or subject.config.slurm.gpus_per_node
    check_deepspeed_settings(train, settings, device_type="cuda" if has_gpu else "cpu")
    check_model_settings(subject.config.model, settings)
    yield ok("deepspeed", "train.deepspeed", f"ZeRO stage {zero_stage(settings)}, {train.precision}")
