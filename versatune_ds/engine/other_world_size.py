"""Load a checkpoint on another number of processes, or under ZeRO stage 1 instead of 2, or 2 instead of 1.

The one idea: DeepSpeed splits the optimizer's state over the processes; its universal form holds it whole, a folder a
parameter. Rank 0 makes that form beside the checkpoint, all ranks load it, and it is deleted: the checkpoint itself is
never touched, and what a kill leaves is deleted at the next start.

Measured with deepspeed 0.19.8: between stage 3 and the others the form does not fit, and stage 0 needs none, since one
file holds all of its optimizer.
"""

from __future__ import annotations

import io
import logging
import shutil
from argparse import Namespace
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from deepspeed.checkpoint import ds_to_universal

from versatune_ds.distributed import World, barrier, run_on_rank_zero
from versatune_ds.engine.checkpoint import load_checkpoint

logger = logging.getLogger(__name__)

_CONVERTIBLE = {1, 2}
"""Stages whose checkpoints DeepSpeed loads for each other."""


def is_convertible(saved_stage: int, stage: int) -> bool:
    """Return whether a checkpoint of one ZeRO stage can be loaded under another."""
    return saved_stage == stage or {saved_stage, stage} <= _CONVERTIBLE


def load_converted(deepspeed_engine: Any, folder: Path, *, world: World) -> None:
    """Restore weights and optimizer from a checkpoint of another number of processes or another stage.

    Communication: rank 0 converts while the others wait; DeepSpeed's own; a barrier before the copy is deleted.

    Raises:
        RuntimeError: If DeepSpeed cannot convert or load it; often there is no room for the copy.
    """
    copy = folder.with_name(folder.name + ".universal")
    logger.info("converting %s for %d processes; the copy is deleted afterwards", folder.name, world.world_size)
    try:
        run_on_rank_zero(lambda: _convert(folder, copy), world)
        deepspeed_engine._config.load_universal_checkpoint = True  # read at each load; there is no other switch
        load_checkpoint(deepspeed_engine, copy)
        _give_each_its_step_count(deepspeed_engine.optimizer.optimizer)
        barrier()
    finally:
        deepspeed_engine._config.load_universal_checkpoint = False
        if world.is_rank_zero:
            shutil.rmtree(copy, ignore_errors=True)
            copy.with_name("latest_universal").unlink(missing_ok=True)


def _give_each_its_step_count(optimizer: torch.optim.Optimizer) -> None:
    """Give every state a step counter of its own.

    Under stage 3 deepspeed 0.19.8 loads one tensor for all of them, and torch's AdamW, which counts in place, then
    counts once for each parameter group: losses were 1e-3 off a few steps later.
    """
    for state in optimizer.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()


def _convert(folder: Path, copy: Path) -> None:
    """Write the universal form of a checkpoint; in this process, since forking one that has threads may hang."""
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
    said = io.StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):  # its progress bars are for another kind of reader
            ds_to_universal.main(settings)
    except Exception:
        # Logged and not added as a note to the error: add_note came with Python 3.11.
        logger.error("converting %s for another number of processes failed: %s", folder, said.getvalue()[-300:])
        raise
