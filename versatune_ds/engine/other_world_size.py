"""Load a checkpoint on another number of processes, or under ZeRO stage 1 instead of 2, or 2 instead of 1.

DeepSpeed splits the optimizer's state over the processes; its universal form has it unsplit, one folder a parameter.
Rank 0 writes that form beside the checkpoint, all ranks load it, and it is deleted. The checkpoint itself is never
touched, and what a kill leaves is deleted at the next start.

Measured with deepspeed 0.19.8: stage 3 and the others cannot load each other's universal form. Stage 0 needs none,
since one file has all of its optimizer.
"""

from __future__ import annotations

import io
import logging
import shutil
from argparse import Namespace
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from deepspeed.checkpoint import ds_to_universal

from versatune_ds.distributed import World, barrier, run_on_rank_zero
from versatune_ds.engine.checkpoint import load_checkpoint
from versatune_ds.engine.deepspeed_quirks import separate_step_counts, universal_checkpoints
from versatune_ds.text_table import counted

logger = logging.getLogger(__name__)

_CONVERTIBLE = {1, 2}
"""Stages whose checkpoints DeepSpeed can load under each other."""


def is_convertible(saved_stage: int, stage: int) -> bool:
    """Return whether a checkpoint of one ZeRO stage can be loaded under another."""
    return saved_stage == stage or {saved_stage, stage} <= _CONVERTIBLE


def load_converted(deepspeed_engine: Any, folder: Path, *, world: World) -> None:
    """Restore weights and optimizer from a checkpoint of another number of processes or another stage.

    Communication: rank 0 converts while the others wait; DeepSpeed's own; a barrier before the copy is deleted.

    Raises:
        RuntimeError: If DeepSpeed cannot convert or load it; often because the disk has no room for the copy.
    """
    copy = folder.with_name(folder.name + ".universal")
    num_processes = counted(world.world_size, "process", plural="processes")
    logger.info("converting %s for %s; the copy is deleted afterwards", folder.name, num_processes)
    try:
        run_on_rank_zero(lambda: _convert(folder, copy), world)
        with universal_checkpoints(deepspeed_engine):
            load_checkpoint(deepspeed_engine, copy)
        separate_step_counts(deepspeed_engine.optimizer.optimizer)
        barrier()
    finally:
        if world.is_rank_zero:
            shutil.rmtree(copy, ignore_errors=True)
            copy.with_name("latest_universal").unlink(missing_ok=True)


def _convert(folder: Path, copy: Path) -> None:
    """Write the universal form of a checkpoint, in this process: forking a process that has threads may hang."""
    shutil.rmtree(copy, ignore_errors=True)
    settings = Namespace(
        input_folder=str(folder),
        output_folder=str(copy),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    output = io.StringIO()
    try:
        with redirect_stdout(output), redirect_stderr(output):  # progress bars
            ds_to_universal.main(settings)
    except Exception:
        # Logged and not added as a note to the error: add_note came with Python 3.11.
        logger.error("converting %s for another number of processes failed: %s", folder, output.getvalue()[-300:])
        raise
