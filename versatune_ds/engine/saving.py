"""Save a run's checkpoints: at once, or in the background while training continues (`checkpoint.background`).

A save that fails is logged and training continues, unless the process ends after it. Of saves in the background one is
under way at a time: the next one, the end of the run and a stop by a signal wait for it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Protocol

from versatune_ds.config import RunConfig
from versatune_ds.distributed import World
from versatune_ds.engine.background_save import BackgroundSave, SaveOutcome, start_save
from versatune_ds.engine.checkpoint import NewCheckpoint, SaveError, save_checkpoint
from versatune_ds.engine.engine import Engine
from versatune_ds.run_folder.checkpoint_files import newest_checkpoint_words, restart_words
from versatune_ds.run_folder.disk_errors import DiskError

logger = logging.getLogger(__name__)


class _Best(Protocol):
    """What saving needs of training/best.py."""

    step: int | None

    def before_save(self) -> None: ...

    def after_save(self, *, is_saved: bool) -> None: ...


@dataclass(slots=True, kw_only=True)
class Saving:
    """Write a run's checkpoints, and know of the one that is being written."""

    config: RunConfig
    world: World
    engine: Engine
    """Not its DeepSpeed engine, which `Engine.close` releases."""
    best: _Best | None
    only_trained: bool
    """Whether frozen weights are left out, because the base model's files have them."""
    background: BackgroundSave | None = None
    """The save under way in the background; it begins and ends at the same step on all ranks."""

    @property
    def is_writing(self) -> bool:
        """Return whether this rank still writes a checkpoint in the background."""
        return self.background is not None and self.background.is_busy

    def save(self, *, step: int, state: dict[str, Any], is_last: bool) -> None:
        """Save a checkpoint, or start to; delete the oldest beyond `checkpoint.keep`, but not the best one.

        The save before must have ended (`finish`). Communication: see engine/checkpoint.py, engine/background_save.py.

        Args:
            step: Optimizer steps done.
            state: Our state; the same on all ranks.
            is_last: Whether the process ends after it. If it cannot be written, the run then ends with an error;
                otherwise that is logged, training continues, and the next save is tried when due.

        Raises:
            DiskError: If the last one could not be written.
        """
        assert self.background is None, "one save at a time"
        is_background = self.config.checkpoint.background and not is_last
        if self.best is not None:
            self.best.before_save()
        new = NewCheckpoint(
            run_dir=self.config.run_dir,
            step=step,
            state=state,
            keep=self.config.checkpoint.keep,
            world=self.world,
            only_trained=self.only_trained,
            best_step=None if self.best is None else self.best.step,
        )
        try:
            result = (start_save if is_background else save_checkpoint)(self.engine.deepspeed_engine, new)
        except SaveError as error:
            self._record_failure(step, str(error), is_last=is_last, cause=error)
            return
        if isinstance(result, BackgroundSave):
            self.background = result
            return
        self._record_saved(result)

    def follow(self, *, is_writing: bool) -> None:
        """Let the save in the background proceed, and log how it ended; never waits for a disk.

        Communication: once all ranks have written, they exchange what; once it is complete, one broadcast.

        Args:
            is_writing: Whether any rank still writes.
        """
        if self.background is not None and not is_writing:
            self._end(self.background.advance())

    def finish(self) -> None:
        """Wait for the save in the background, if one is under way. Communication: as `follow`."""
        if self.background is None:
            return
        if self.background.is_busy:
            logger.info("waiting until the checkpoint of step %d is written", self.background.step)
        self._end(self.background.wait())

    def abandon(self) -> None:
        """Stop a save that is under way where the run has failed; the checkpoint before it is the newest."""
        if self.background is not None:
            self.background.abandon()

    def _end(self, outcome: SaveOutcome | None) -> None:
        """Record how the save in the background ended; None where it has not."""
        if outcome is None:
            return
        self.background = None
        if outcome.failure is None:
            self._record_saved(outcome.folder)
        else:
            self._record_failure(outcome.step, outcome.failure, is_last=False)

    def _record_saved(self, folder: Any) -> None:
        """Log a complete checkpoint."""
        if self.best is not None:
            self.best.after_save(is_saved=True)
        logger.info("saved %s", folder)

    def _record_failure(self, step: int, why: str, *, is_last: bool, cause: Exception | None = None) -> None:
        """Log a failed save; raise where the process would end without it."""
        failed = f"step {step} could not be saved ({why}); {newest_checkpoint_words(self.config.run_dir)}"
        if is_last:
            raise DiskError(f"{failed}. Free disk space and {restart_words(self.config.run_dir)}") from cause
        logger.error("%s. Training continues, and the next save is tried when due", failed)
        if self.best is not None:
            self.best.after_save(is_saved=False)
