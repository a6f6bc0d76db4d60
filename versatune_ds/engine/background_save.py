"""Save a checkpoint while training continues.

1. **Snapshot.** Every rank copies its state into the host's memory (`snapshot.py`); training waits for this alone.
2. **Write.** A thread of each rank writes the copies into `step_XXXXXXXX.partial`, with size and checksum of each file.
3. **Publish.** Once all ranks have written, a thread of rank 0 writes the MANIFEST, renames the folder, and deletes the
   oldest checkpoints.

So a kill at any moment leaves the checkpoint before it as the newest. Threads make no collective calls: the ranks learn
that a phase has ended through a flag in the all-reduce that they make in each step anyway, all at the same step.

A thread and not a process: forking a process that uses CUDA or has threads may hang, and a spawned one would need the
copies a second time. Checksums and writes release Python's lock.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from versatune_ds.distributed import barrier, from_rank_zero, texts_of_ranks
from versatune_ds.engine.checkpoint import NewCheckpoint, SaveError, all_or_none, make_empty, publish, write_file
from versatune_ds.engine.checkpoint_quirks import save_files
from versatune_ds.engine.snapshot import take_snapshot
from versatune_ds.run_folder.checkpoint_files import CheckedStream, Files, file_names, measure_file
from versatune_ds.run_folder.names import STATE_FILE

logger = logging.getLogger(__name__)

_ABANDON_SECONDS = 10.0
"""How long a run that failed waits for a disk that hangs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveOutcome:
    """How a save in the background ended; the same on every rank."""

    step: int
    folder: Path
    failure: str | None
    """Why it could not be written; None where it is complete."""


class BackgroundSave:
    """One checkpoint that is being written; `start_save` makes it.

    Args:
        new: What is saved.
    """

    def __init__(self, new: NewCheckpoint) -> None:
        self._new, self._world = new, new.world
        self._is_abandoned = threading.Event()
        self._written: Files = {}
        self._failure: str | None = None
        self._is_publishing = False
        self._thread: threading.Thread | None = None

    @property
    def step(self) -> int:
        """Return the step that is saved."""
        return self._new.step

    @property
    def is_busy(self) -> bool:
        """Return whether a thread of this rank still works on it."""
        return self._thread is not None and self._thread.is_alive()

    def write(self, files: list[tuple[Path, Any]]) -> None:
        """Start to write this rank's files, on rank 0 with our own state; the list is emptied."""
        partial, state_text = self._new.partial, self._new.state_text()  # the state of now

        def work() -> None:
            files.reverse()
            while files:
                path, values = files.pop()
                entry = write_file(values, path, should_stop=self._is_abandoned.is_set)
                self._written[path.relative_to(partial).as_posix()] = entry
                del values  # its memory is free for what training needs
            if self._world.is_rank_zero:
                self._written[STATE_FILE] = _write_text(partial / STATE_FILE, state_text)

        self._start(work)

    def advance(self) -> SaveOutcome | None:
        """Begin the next phase, or return the outcome after the last one; None before.

        Communication: all ranks call it at the same step, when no rank `is_busy`. After writing they exchange what they
        have written; after publishing rank 0 broadcasts the outcome.
        """
        barrier()  # for `wait`: a rank that writes longer than the group's timeout
        self._join()
        if self._is_publishing:
            return self._outcome(from_rank_zero(lambda: self._failure, self._world))
        texts = texts_of_ranks(json.dumps({"files": self._written, "failure": self._failure}), self._world)
        ranks = [json.loads(text) for text in texts]
        failures = [f"rank {i}: {rank['failure']}" for i, rank in enumerate(ranks) if rank["failure"] is not None]
        if failures:
            return self._outcome("; ".join(failures))
        self._is_publishing = True
        if self._world.is_rank_zero:
            written = {name: numbers for rank in ranks for name, numbers in rank["files"].items()}
            self._start(lambda: self._publish(written))
        return None

    def wait(self) -> SaveOutcome:
        """Wait until it is complete or has failed. Communication: that of `advance`, twice at most."""
        while True:
            self._join()
            outcome = self.advance()
            if outcome is not None:
                return outcome

    def abandon(self) -> None:
        """Stop writing, since the run has failed: the checkpoint stays incomplete, and the next start deletes it."""
        self._is_abandoned.set()
        if self._thread is not None:
            self._thread.join(_ABANDON_SECONDS)

    def _publish(self, written: Files) -> None:
        """Complete the checkpoint, and delete the oldest ones; on rank 0, in its thread."""
        # Files that DeepSpeed copied by itself, such as states on NVMe, are there since the snapshot.
        partial = self._new.partial
        others = [name for name in file_names(partial) if name not in written]
        files = {**written, **{name: measure_file(partial / name) for name in others}}
        if self._is_abandoned.is_set():
            return
        publish(partial, self._new.folder, files=files)
        self._new.delete_oldest()

    def _outcome(self, failure: str | None) -> SaveOutcome:
        """Return the outcome; what is left of a failed save is deleted by rank 0."""
        if failure is not None and self._world.is_rank_zero:
            shutil.rmtree(self._new.partial, ignore_errors=True)
        return SaveOutcome(step=self._new.step, folder=self._new.folder, failure=failure)

    def _start(self, work: Callable[[], None]) -> None:
        """Start a thread that does the work and keeps its failure; a daemon: it cannot keep a failed run alive."""

        def run() -> None:
            try:
                work()
            except (OSError, RuntimeError) as error:
                self._failure = str(error)
            except BaseException as error:
                logger.exception("saving step %d in the background", self._new.step)
                self._failure = repr(error)

        self._thread = threading.Thread(target=run, name="versatune-save", daemon=True)
        self._thread.start()

    def _join(self) -> None:
        """Wait for this rank's thread."""
        if self._thread is not None:
            self._thread.join()


def start_save(deepspeed_engine: Any, new: NewCheckpoint) -> BackgroundSave:
    """Copy the state of this moment, and start to write it as `save_checkpoint` would.

    Communication: DeepSpeed's own barriers, and after each phase one all-reduce of a flag.

    Raises:
        SaveError: On every rank, if the copy could not be made on one: too little memory, most often.
    """
    partial, world = new.partial, new.world
    files: list[tuple[Path, Any]] = []

    def keep_copy(values: Any, path: Path) -> None:
        files.append((path, take_snapshot(values)))

    def copy_state() -> None:
        save_files(deepspeed_engine, partial, write=keep_copy, only_trained=new.only_trained)
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the next step changes what is being copied

    try:
        all_or_none(lambda: world.is_rank_zero and make_empty(partial))
        all_or_none(copy_state)
    except SaveError:
        if world.is_rank_zero:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    save = BackgroundSave(new)
    save.write(files)
    return save


def _write_text(path: Path, text: str) -> list[int]:
    """Write a text, force it to disk, and return its size and checksum."""
    with CheckedStream(path) as stream:
        stream.write(text.encode())
        return stream.finish()
