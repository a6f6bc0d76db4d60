"""Load a checkpoint on another number of processes, or under ZeRO stage 1 instead of 2, or 2 instead of 1.

DeepSpeed splits the optimizer's state over the processes; its universal form has it unsplit, one folder a parameter.
The ranks of rank 0's machine write that form beside the checkpoint (`universal_conversion.py`), all load it, and it is
deleted. The checkpoint itself is never touched, and what a kill leaves is deleted at the next start.

Measured with deepspeed 0.19.8: stage 3 and the others cannot load each other's universal form. Stage 0 needs none,
since one file has all of its optimizer.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from versatune_ds.distributed import World, barrier
from versatune_ds.engine.checkpoint import load_checkpoint
from versatune_ds.engine.checkpoint_quirks import separate_step_counts, universal_checkpoints
from versatune_ds.engine.universal_conversion import convert

_CONVERTIBLE = {1, 2}
"""Stages whose checkpoints DeepSpeed can load under each other."""


def is_convertible(saved_stage: int, stage: int) -> bool:
    """Return whether a checkpoint of one ZeRO stage can be loaded under another."""
    return saved_stage == stage or {saved_stage, stage} <= _CONVERTIBLE


def load_converted(deepspeed_engine: Any, folder: Path, *, world: World) -> None:
    """Restore weights and optimizer from a checkpoint of another number of processes or another stage.

    Communication: that of the conversion; DeepSpeed's own; a barrier before the copy is deleted.

    Raises:
        RuntimeError: If DeepSpeed cannot convert or load it; often because the disk has no room for the copy.
    """
    copy = folder.with_name(folder.name + ".universal")
    try:
        convert(folder, copy, world=world)
        with universal_checkpoints(deepspeed_engine):
            load_checkpoint(deepspeed_engine, copy)
        separate_step_counts(deepspeed_engine.optimizer.optimizer)
        barrier()
    finally:
        if world.is_rank_zero:
            shutil.rmtree(copy, ignore_errors=True)
            copy.with_name("latest_universal").unlink(missing_ok=True)
