"""Find the checkpoints of a run and check their files, without a model.

A checkpoint's MANIFEST lists every file with its size and checksum, and has a checksum of its own. So a change of any
byte of any file is found, and the file is named.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from versatune_ds.distributed import World, broadcast_text, sum_over_ranks
from versatune_ds.run_folder.atomic import sync_file, write_text
from versatune_ds.run_folder.names import (
    CHECKPOINTS_FOLDER,
    MANIFEST_FILE,
    STATE_FILE,
    complete_checkpoints,
    step_of_checkpoint,
)

logger = logging.getLogger(__name__)

_VERSION = 1
_BLOCK_BYTES = 1 << 24
_LEFTOVERS = (".partial", ".old", ".universal")
"""Endings of the folders that saving, deleting and converting use; a folder with another ending is a user's copy."""

Files = dict[str, list[int]]
"""{relative path: [bytes, crc32]} of a checkpoint's files."""


def newest_checkpoint_name(run_dir: Path) -> str:
    """Return the name of the newest complete checkpoint for a message, `none` without one."""
    return next((path.name for path in complete_checkpoints(run_dir)), "none")


def newest_checkpoint_words(run_dir: Path) -> str:
    """Return which checkpoint is the newest complete one, for a message, or that there is none."""
    if complete_checkpoints(run_dir):
        return f"the newest complete checkpoint is {newest_checkpoint_name(run_dir)}"
    return "there is no complete checkpoint"


def restart_words(run_dir: Path) -> str:
    """Return what a new start does, for a message: it resumes from a checkpoint, or begins where there is none."""
    if complete_checkpoints(run_dir):
        return "start again to resume from it"
    return "start again; the run then begins at step 1"


def remove_unfinished(run_dir: Path) -> None:
    """Delete what interrupted saves, deletions and conversions left beside the checkpoints."""
    for ending in _LEFTOVERS:
        for path in (run_dir / CHECKPOINTS_FOLDER).glob(f"step_????????{ending}"):
            with contextlib.suppress(OSError):
                remove_folder(path)


def remove_folder(path: Path) -> None:
    """Delete a folder if it exists; of a link to a folder elsewhere only the link."""
    if path.is_symlink():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)


def newest_valid_checkpoint(run_dir: Path, world: World, *, last_step: int | None = None) -> Path | None:
    """Return the newest checkpoint, of a given last step at most, whose files match its MANIFEST.

    Each one whose files do not is logged.

    Communication: a broadcast of what rank 0 finds, then per checkpoint checked a broadcast and one all-reduce.
    """
    names = [folder.name for folder in complete_checkpoints(run_dir)] if world.is_rank_zero else []
    if last_step is not None:
        names = [name for name in names if step_of_checkpoint(name) <= last_step]
    for name in json.loads(broadcast_text(json.dumps(names), world)):
        folder = run_dir / CHECKPOINTS_FOLDER / name
        files = json.loads(broadcast_text(json.dumps(read_manifest(folder)) if world.is_rank_zero else None, world))
        corrupt = _corrupt_files(folder, files, world=world)
        if not corrupt:
            return folder
        logger.warning("%s is corrupt (%s); trying the checkpoint before it", folder, ", ".join(corrupt))
    return None


def check_valid(folder: Path) -> None:
    """Check all files of a checkpoint against its MANIFEST, in this process alone.

    Raises:
        RuntimeError: Naming the files that are missing or differ.
    """
    corrupt = _corrupt_files(folder, read_manifest(folder), world=None)
    if corrupt:
        raise RuntimeError(f"{folder} is corrupt ({', '.join(corrupt)}); delete it to use the checkpoint before it")


def read_state(folder: Path) -> dict[str, Any]:
    """Return this package's own state in a checkpoint."""
    return json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))


class CheckedStream:
    """Write a new file, and know its size and checksum without reading it back.

    Args:
        path: The file.
        should_stop: Asked before every block; where it returns True, writing fails.
    """

    def __init__(self, path: Path, *, should_stop: Callable[[], bool] = lambda: False) -> None:
        self.name = str(path)
        self._should_stop = should_stop
        self.size, self.checksum = 0, 0
        self.failure: OSError | None = None
        """Why it could not be written; torch.save reports a position in the file in its place."""
        self._stream = path.open("wb", buffering=0)

    def __enter__(self) -> CheckedStream:
        return self

    def __exit__(self, *unused: object) -> None:
        self._stream.close()

    def write(self, content: bytes | memoryview) -> int:
        """Append bytes.

        Raises:
            OSError: If they cannot be written, and at every call after one that raised.
        """
        if self.failure is not None:
            raise self.failure
        rest = view = memoryview(content).cast("B")
        try:
            while rest:
                if self._should_stop():
                    raise InterruptedError(f"{self.name}: writing was stopped")
                num_written = self._stream.write(rest[:_BLOCK_BYTES])
                self.checksum = zlib.crc32(rest[:num_written], self.checksum)
                self.size += num_written
                rest = rest[num_written:]
        except OSError as error:
            self.failure = error
            raise
        return len(view)

    def flush(self) -> None:
        """Do nothing, for torch.save: nothing is buffered here."""

    def finish(self) -> list[int]:
        """Force the file to disk and return its size and checksum."""
        os.fsync(self._stream.fileno())
        return [self.size, self.checksum]


def measure_files(folder: Path, world: World, *, known: Files | None = None) -> Files:
    """Return the sizes and checksums of a folder's files: those known from writing, and those forced to disk and read.

    Of the files that no rank has written itself (DeepSpeed copies some), each rank reads every world_size-th one.
    Rank 0 alone lists the folder: on a network file system the others may not see every name yet. Communication: a
    broadcast of the names, one all-reduce of the numbers.

    Args:
        folder: The folder.
        world: This process's place.
        known: What all ranks know of files that they have written and forced to disk.

    Raises:
        OSError: On the rank that cannot list or read its share; the caller tells the others.
    """
    names: list[str] = []
    failure: OSError | None = None
    # A rank that fails takes part in the communication all the same, or the others would wait for it.
    try:
        names = [name for name in file_names(folder) if name not in (known or {})] if world.is_rank_zero else []
    except OSError as error:
        failure = error
    names = json.loads(broadcast_text(json.dumps(names), world))
    measured = np.zeros((len(names), 2))
    for i in range(world.rank, len(names), world.world_size):
        try:
            measured[i] = measure_file(folder / names[i])
        except OSError as error:
            failure = error
    totals = sum_over_ranks(measured)  # below 2^53, so exact in float64
    if failure is not None:
        raise failure
    return {**(known or {}), **{name: [int(size), int(crc)] for name, (size, crc) in zip(names, totals, strict=True)}}


def measure_file(path: Path) -> list[int]:
    """Force a file to disk and return its size and checksum."""
    sync_file(path)
    return [path.stat().st_size, _crc32(path)]


def write_manifest(folder: Path, files: Files) -> None:
    """Write the MANIFEST; without it a folder is no checkpoint."""
    listed = json.dumps(files, sort_keys=True)
    values = {"version": _VERSION, "crc32": zlib.crc32(listed.encode()), "files": files}
    write_text(folder / MANIFEST_FILE, json.dumps(values, indent=1))


def read_manifest(folder: Path) -> Files | None:
    """Return the files that a checkpoint's MANIFEST lists, None where it is corrupt or of another version."""
    try:
        values = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        listed = json.dumps(values["files"], sort_keys=True)
        is_valid = values["version"] == _VERSION and values["crc32"] == zlib.crc32(listed.encode())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return values["files"] if is_valid else None


def _manifest_fault(folder: Path) -> str:
    """Describe a MANIFEST that cannot be used: one of another format is not corrupt."""
    try:
        found = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8")).get("version", "before 1")
    except (OSError, ValueError, AttributeError):
        return MANIFEST_FILE
    return MANIFEST_FILE if found == _VERSION else f"{MANIFEST_FILE} of format {found}, this version reads {_VERSION}"


def file_names(folder: Path) -> list[str]:
    """Return the relative paths of a folder's files, sorted, without the manifest."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_FILE)
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _crc32(path: Path) -> int:
    """Return a file's CRC-32, read in blocks."""
    checksum = 0
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _corrupt_files(folder: Path, files: Files | None, *, world: World | None) -> list[str]:
    """Return the files that are missing or differ, or what is wrong with the MANIFEST where it lists none.

    With a world of several ranks each reads its share (one all-reduce). One rank communicates with none, even where the
    process has a group: rank 0 of `evaluate --sharded` exports a run while the others wait for work.
    """
    if files is None:
        return [_manifest_fault(folder)]
    rank, world_size = (world.rank, world.world_size) if world else (0, 1)
    names = sorted(files)
    is_corrupt = np.zeros(len(names))
    for i in range(rank, len(names), world_size):
        is_corrupt[i] = not _is_as_listed(folder / names[i], *files[names[i]])
    if world_size > 1:
        is_corrupt = sum_over_ranks(is_corrupt)
    return [names[i] for i in np.flatnonzero(is_corrupt)]


def _is_as_listed(path: Path, size: int, checksum: int) -> bool:
    """Return whether a file can be read and has this size and checksum."""
    try:
        return path.stat().st_size == size and _crc32(path) == checksum
    except OSError:
        return False
