"""Save and restore a run so that a checkpoint is either whole or does not count.

The one idea: DeepSpeed's files and our own `versatune.json` are written into `step_XXXXXXXX.partial`; only when the
MANIFEST with every file's size and checksum lies beside them is the folder renamed to `step_XXXXXXXX`. Whatever is
killed, or fails, before that leaves the previous checkpoint as the newest whole one.

Our own state is rank-independent: below ZeRO-3 one rank writes DeepSpeed's `client_state` and every rank would read
that rank's values back (deepspeed 0.19.8), so nothing of ours is stored there.

Saving is not asynchronous. Of deepspeed 0.19.8's engines for it, the decoupled one shares CPU tensors with its writer
without copying them and drops a save in silence when the writer is gone, and both it and the fast one read files back
with torch's `weights_only`, which refuses what they wrote.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

from versatune_ds.distributed import World, any_rank, run_on_rank_zero
from versatune_ds.engine.optimizer_settings import OptimizerSettings
from versatune_ds.run_folder.atomic import rename_folder, write_text
from versatune_ds.run_folder.checkpoint_files import complete_checkpoints, measure_files, remove_folder, write_manifest
from versatune_ds.run_folder.names import LATEST_FILE, STATE_FILE, checkpoint_folder

logger = logging.getLogger(__name__)


class SaveError(RuntimeError):
    """Say, on every rank, that a checkpoint could not be written; nothing of it is left, the others stand."""


class _CollectingWriter(TorchCheckpointEngine):
    """Write DeepSpeed's files, and keep a failure until all ranks may speak of it.

    Between two files DeepSpeed (0.19.8) meets in barriers. A rank that raised at a full disk would leave the others
    waiting there until the process group's timeout.
    """

    def __init__(self) -> None:
        super().__init__()
        self.failure: Exception | None = None

    def save(self, state_dict: Any, path: str) -> None:
        """Write one file, unless one before it failed."""
        if self.failure is not None:
            return
        try:
            torch.save(state_dict, path)
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError where the disk is full
            self.failure = error


def save_checkpoint(
    deepspeed_engine: Any, *, run_dir: Path, step: int, state: dict[str, Any], keep: int, world: World
) -> Path:
    """Save DeepSpeed's state and ours as one whole, and drop the oldest checkpoints beyond `keep`.

    Communication: DeepSpeed's own barriers, one all-reduce of the files' checksums (each rank reads its share), and
    after each phase one all-reduce of a flag: whether it failed on any rank.

    Args:
        deepspeed_engine: The engine whose weights and optimizer are saved.
        run_dir: The run's folder.
        step: Optimizer steps done.
        state: Rank-independent JSON state; the same on all ranks.
        keep: Newest checkpoints kept.
        world: This process's place.

    Raises:
        SaveError: On every rank, if the files could not be written on one: a full disk, most often.
    """
    folder = checkpoint_folder(run_dir, step=step)
    partial = folder.with_name(folder.name + ".partial")
    try:
        _all_or_none(lambda: world.is_rank_zero and _make_empty(partial))
        _all_or_none(lambda: _write_engine(deepspeed_engine, partial))
        text = json.dumps(state, indent=1)
        _all_or_none(lambda: world.is_rank_zero and write_text(partial / STATE_FILE, text))
        files = _all_or_none(lambda: measure_files(partial, world))
        _all_or_none(lambda: world.is_rank_zero and _make_whole(partial, folder, files=files))
    except SaveError:
        run_on_rank_zero(lambda: shutil.rmtree(partial, ignore_errors=True), world)
        raise
    run_on_rank_zero(lambda: _drop_oldest(folder, keep=keep), world)
    return folder


def _all_or_none(phase: Callable[[], Any]) -> Any:
    """Do a phase of saving on this rank, and raise on all ranks where it failed on one. Communication: one flag.

    Raises:
        SaveError: With the failure of this rank, or naming that of another.
    """
    result, failure = None, None
    try:
        result = phase()
    except (OSError, RuntimeError) as error:
        failure = error
    if any_rank(failure is not None):
        raise SaveError(str(failure) if failure else "another rank could not write its files") from failure
    return result


def _write_engine(deepspeed_engine: Any, partial: Path) -> None:
    """Let DeepSpeed write its files, in step with the other ranks even where a file cannot be written.

    Raises:
        OSError, RuntimeError: What writing the first such file raised.
    """
    writer = _CollectingWriter()
    deepspeed_engine.checkpoint_engine = writer
    # Rank 0 would copy scripts beside the files and fail alone where there is no room; `versatune export` does better.
    deepspeed_engine._copy_recovery_script = lambda save_path: None
    deepspeed_engine.save_checkpoint(str(partial.parent), tag=partial.name, client_state={}, save_latest=False)
    if writer.failure is not None:
        raise writer.failure


def _make_empty(folder: Path) -> None:
    """Create a folder, dropping what a killed save left in it."""
    remove_folder(folder)
    folder.mkdir(parents=True)


def _make_whole(partial: Path, folder: Path, *, files: dict[str, list[int]]) -> None:
    """Write the manifest, give the folder its name, point `latest` at it."""
    write_manifest(partial, files)
    remove_folder(folder)
    rename_folder(partial, folder)
    write_text(folder.with_name(LATEST_FILE), folder.name + "\n")


def _drop_oldest(newest: Path, *, keep: int) -> None:
    """Delete all but the newest checkpoints, renamed first: a kill amid deleting leaves none that looks whole.

    One that cannot be deleted is said and left: the new one is whole, and training goes on.

    Those of later steps than the newest one are broken, or the run would have gone on from them: they go, and take no
    sound one's place.

    Args:
        newest: The checkpoint just saved.
        keep: Checkpoints kept, this one among them.
    """
    whole = complete_checkpoints(newest.parents[1])
    kept = whole[whole.index(newest) :][:keep]
    for old in whole:
        if old not in kept:
            renamed = old.with_name(old.name + ".old")
            try:
                old.rename(renamed)
                remove_folder(renamed)
            except OSError as error:
                logger.warning("%s could not be deleted: %s", old, error)


def load_checkpoint(deepspeed_engine: Any, folder: Path) -> None:
    """Restore weights and optimizer from a checkpoint of as many processes and the same ZeRO stage.

    The optimizer's settings (weight decay, betas, clipping) stay those of the run that resumes.

    Raises:
        RuntimeError: If DeepSpeed finds nothing it can load.
    """
    settings = OptimizerSettings.of(deepspeed_engine.optimizer)
    loaded, _ = deepspeed_engine.load_checkpoint(str(folder.parent), tag=folder.name)
    settings.restore(deepspeed_engine.optimizer)
    if loaded is None:
        raise RuntimeError(f"{folder}: DeepSpeed could not load it; remove the folder to fall back on the one before")


def open_weights(folder: Path) -> dict[str, Any]:
    """Return the model's weights of a checkpoint by name, fp32 masters where the optimizer keeps them, hardly read.

    Each has `shape` and `dtype`, and `contiguous()` reads it as a tensor. Under ZeRO-3 the files of all ranks are
    mapped and a weight is put together when it is asked for; below, all of them are in memory from the start.
    """
    weights: dict[str, Any] = {}
    if list(folder.glob("*_optim_states.pt")):
        with contextlib.redirect_stdout(io.StringIO()):  # what it found and counted; what is wrong, it raises
            weights = get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), tag=folder.name, lazy_mode=True)
    # Below ZeRO-3 one file holds every weight in the model's precision. It is all there is at stage 0, and under
    # stage 1 the only place of frozen weights, which deepspeed 0.19.8 keeps as fp32 fragments at stages 2 and 3 alone.
    path = folder / "mp_rank_00_model_states.pt"
    if not path.is_file():
        return dict(weights)
    # The file also holds DeepSpeed's config objects, so weights_only cannot read it whole.
    return {**torch.load(path, map_location="cpu", mmap=True, weights_only=False)["module"], **weights}
