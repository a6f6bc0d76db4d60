"""Save and restore a run so that a checkpoint is either complete or does not count.

DeepSpeed's files and our own `versatune.json`, which is the same on all ranks, are written into
`step_XXXXXXXX.partial`. Only when the MANIFEST with every file's size and checksum is beside them, the folder is
renamed to `step_XXXXXXXX`. Whatever is killed, or fails, before that leaves the previous checkpoint as the newest.

`background_save.py` writes the same files while training continues. DeepSpeed's own engines for that are not used: of
0.19.8's, the decoupled one shares CPU tensors with its writer without copying them and silently drops a save when the
writer is gone, and both it and the fast one read files back with torch's `weights_only`, which refuses what they wrote.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

from versatune_ds.distributed import World, any_rank, run_on_rank_zero, texts_of_ranks
from versatune_ds.engine.checkpoint_quirks import OptimizerSettings, load_module, place_step_counts, save_files
from versatune_ds.run_folder.atomic import rename_folder, write_text
from versatune_ds.run_folder.checkpoint_files import (
    CheckedStream,
    Files,
    complete_checkpoints,
    measure_files,
    remove_folder,
    write_manifest,
)
from versatune_ds.run_folder.names import LATEST_FILE, STATE_FILE, checkpoint_folder

logger = logging.getLogger(__name__)


class SaveError(RuntimeError):
    """A checkpoint could not be written; raised on every rank. Nothing of it is left, earlier ones are as they were."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCheckpoint:
    """A checkpoint that is to be saved: where, of which step, with which state, and which older ones stay."""

    run_dir: Path
    step: int
    """Optimizer steps done."""
    state: dict[str, Any]
    """Our state as JSON values; the same on all ranks."""
    keep: int
    """Newest checkpoints kept, this one included."""
    world: World
    only_trained: bool = False
    """Whether frozen weights are left out, because they can be loaded from the base model again."""
    best_step: int | None = None
    """Step of the best checkpoint, which is kept besides the newest ones; None without one."""

    @property
    def folder(self) -> Path:
        """Return its folder once it is complete."""
        return checkpoint_folder(self.run_dir, step=self.step)

    @property
    def partial(self) -> Path:
        """Return the folder that it is written into."""
        return self.folder.with_name(self.folder.name + ".partial")

    def state_text(self) -> str:
        """Return our state as the text of its file."""
        return json.dumps(self.state, indent=1)

    def delete_oldest(self) -> None:
        """Delete the checkpoints that are not kept, once this one is complete; on rank 0."""
        best = None if self.best_step is None else checkpoint_folder(self.run_dir, step=self.best_step)
        delete_oldest(self.folder, keep=self.keep, best=best)


def save_checkpoint(deepspeed_engine: Any, new: NewCheckpoint) -> Path:
    """Save DeepSpeed's state and ours as one checkpoint, and delete the oldest checkpoints beyond `keep`.

    Communication: DeepSpeed's own barriers, an exchange of the files' checksums, which each rank computes as it writes,
    and after each phase one all-reduce of a flag: whether it failed on any rank.

    Args:
        deepspeed_engine: The engine whose weights and optimizer are saved.
        new: What is saved.

    Raises:
        SaveError: On every rank, if the files could not be written on one: a full disk, most often.
    """
    partial, world = new.partial, new.world
    written: Files = {}

    def write(values: Any, path: Path) -> None:
        written[path.relative_to(partial).as_posix()] = write_file(values, path)

    try:
        all_or_none(lambda: world.is_rank_zero and make_empty(partial))
        all_or_none(lambda: save_files(deepspeed_engine, partial, write=write, only_trained=new.only_trained))
        text = new.state_text()
        all_or_none(lambda: world.is_rank_zero and write_text(partial / STATE_FILE, text))
        known = files_of_ranks(written, world)
        files = all_or_none(lambda: measure_files(partial, world, known=known))
        all_or_none(lambda: world.is_rank_zero and publish(partial, new.folder, files=files))
    except SaveError:
        run_on_rank_zero(lambda: shutil.rmtree(partial, ignore_errors=True), world)
        raise
    run_on_rank_zero(new.delete_oldest, world)
    return new.folder


def write_file(values: Any, path: Path, *, should_stop: Callable[[], bool] = lambda: False) -> list[int]:
    """Write values with torch.save, force the file to disk, and return its size and checksum.

    Raises:
        OSError, RuntimeError: If it cannot be written, or `should_stop` returns True meanwhile.
    """
    with CheckedStream(path, should_stop=should_stop) as stream:
        try:
            torch.save(values, stream)
        except (OSError, RuntimeError):
            if stream.failure is not None:
                raise stream.failure from None
            raise
        return stream.finish()


def files_of_ranks(written: Files, world: World) -> Files:
    """Return the files that all ranks have written. Communication: one exchange of texts."""
    texts = texts_of_ranks(json.dumps(written), world)
    return {name: numbers for text in texts for name, numbers in json.loads(text).items()}


def all_or_none(phase: Callable[[], Any]) -> Any:
    """Run one phase of saving, and raise on all ranks if it failed on one. Communication: one flag.

    Raises:
        SaveError: With the failure of this rank, or the news that another rank failed.
    """
    result, failure = None, None
    try:
        result = phase()
    except (OSError, RuntimeError) as error:
        failure = error
    if any_rank(failure is not None):
        raise SaveError(str(failure) if failure else "another rank could not write its files") from failure
    return result


def make_empty(folder: Path) -> None:
    """Create a folder, deleting what an interrupted save left in it."""
    remove_folder(folder)
    folder.mkdir(parents=True)


def publish(partial: Path, folder: Path, *, files: dict[str, list[int]]) -> None:
    """Write the MANIFEST, give the folder its final name, point `latest` at it."""
    write_manifest(partial, files)
    remove_folder(folder)
    rename_folder(partial, folder)
    write_text(folder.with_name(LATEST_FILE), folder.name + "\n")


def delete_oldest(newest: Path, *, keep: int, best: Path | None) -> None:
    """Delete all but the newest checkpoints and the best one; log one that cannot be deleted, and train on.

    Each is renamed first, so that a kill amid deleting leaves none that looks complete. Checkpoints of later steps than
    the newest one are corrupt (the run would otherwise have resumed from them): they are deleted too, so that they do
    not count towards `keep`.

    Args:
        newest: The checkpoint just saved.
        keep: Newest checkpoints kept, this one included.
        best: The best checkpoint, kept whatever its age; None without one.
    """
    checkpoints = complete_checkpoints(newest.parents[1])
    kept = checkpoints[checkpoints.index(newest) :][:keep]
    for old in checkpoints:
        if old in kept or old == best:
            continue
        renamed = old.with_name(old.name + ".old")
        try:
            old.rename(renamed)
            remove_folder(renamed)
        except OSError as error:
            logger.warning("%s could not be deleted: %s", old, error)


def load_checkpoint(deepspeed_engine: Any, folder: Path, *, only_trained: bool = False) -> None:
    """Restore weights and optimizer from a checkpoint of the same number of processes and the same ZeRO stage.

    The optimizer's settings (weight decay, betas, clipping) stay those of the run that resumes.

    Args:
        deepspeed_engine: The engine, its model as the run starts with.
        folder: The checkpoint.
        only_trained: Whether it was saved so; frozen weights then stay as they are.

    Raises:
        RuntimeError: If DeepSpeed finds nothing that it can load, or other trained weights.
    """
    settings = OptimizerSettings.of(deepspeed_engine.optimizer)
    loader = load_module if only_trained else None
    loaded, _ = deepspeed_engine.load_checkpoint(str(folder.parent), tag=folder.name, custom_load_fn=loader)
    settings.restore(deepspeed_engine.optimizer)
    place_step_counts(deepspeed_engine.optimizer)
    if loaded is None:
        raise RuntimeError(f"{folder}: DeepSpeed could not load it; delete it to use the checkpoint before it")


def open_weights(folder: Path) -> dict[str, Any]:
    """Open a checkpoint and return the model's weights by name: fp32 where the optimizer has fp32 copies.

    Frozen weights are absent where it was saved without them.

    Each weight has `shape` and `dtype`, and `contiguous()` reads it as a tensor. Under ZeRO-3 the files of all ranks
    are mapped, and a weight is assembled when it is read; in lower stages all weights are in memory at once.
    """
    weights: dict[str, Any] = {}
    if list(folder.glob("*_optim_states.pt")):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it finds; errors are raised
            weights = get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), tag=folder.name, lazy_mode=True)
    # Below ZeRO-3 one file has every weight in the model's precision: the only one at stage 0, and the only one with
    # frozen weights at stage 1 (deepspeed 0.19.8 writes those as fp32 fragments at stages 2 and 3 only).
    path = folder / "mp_rank_00_model_states.pt"
    if not path.is_file():
        return dict(weights)
    # The file also contains DeepSpeed's config objects, which weights_only refuses.
    return {**torch.load(path, map_location="cpu", mmap=True, weights_only=False)["module"], **weights}
