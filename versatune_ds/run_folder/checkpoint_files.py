"""Tell whole checkpoints from broken ones: names, sizes and checksums, without a model.

The one idea: a checkpoint's MANIFEST names every file with its size and checksum, and carries a checksum of its own.
So whatever byte of whatever file has changed, the checkpoint is seen to be broken, and the file is named.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from versatune_ds.distributed import World, broadcast_text, sum_over_ranks
from versatune_ds.run_folder.names import CHECKPOINTS_FOLDER

logger = logging.getLogger(__name__)

STATE_FILE = "versatune.json"
MANIFEST_FILE = "MANIFEST"
_VERSION = 1
_BLOCK_BYTES = 1 << 24
_LEFTOVERS = (".partial", ".old", ".universal")
"""Endings of the folders that saving, deleting and converting use; another one is a user's own copy."""

Files = dict[str, list[int]]
"""{relative path: [bytes, crc32]} of a checkpoint's files."""


def checkpoint_folder(run_dir: Path, *, step: int) -> Path:
    """Return the folder of a step's checkpoint."""
    return run_dir / CHECKPOINTS_FOLDER / f"step_{step:08d}"


def whole_checkpoints(run_dir: Path) -> list[Path]:
    """Return the folders of checkpoints that were finished, newest first; their files are not looked at."""
    folders = (run_dir / CHECKPOINTS_FOLDER).glob("step_????????")
    return sorted((path for path in folders if (path / MANIFEST_FILE).is_file()), reverse=True)


def remove_unfinished(run_dir: Path) -> None:
    """Delete what killed saves and conversions left beside the checkpoints."""
    for ending in _LEFTOVERS:
        for path in (run_dir / CHECKPOINTS_FOLDER).glob(f"step_????????{ending}"):
            with contextlib.suppress(OSError):
                remove_folder(path)


def remove_folder(path: Path) -> None:
    """Delete a folder where there is one; of a link to a folder elsewhere the link alone."""
    if path.is_symlink():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)


def newest_sound_checkpoint(run_dir: Path, world: World) -> Path | None:
    """Return the newest checkpoint whose files are as its MANIFEST says, naming each that is not.

    Communication: a broadcast of what rank 0 finds, then per checkpoint looked at a broadcast and one all-reduce.
    """
    found = [folder.name for folder in whole_checkpoints(run_dir)] if world.is_rank_zero else []
    for name in json.loads(broadcast_text(json.dumps(found), world)):
        folder = run_dir / CHECKPOINTS_FOLDER / name
        files = json.loads(broadcast_text(json.dumps(read_manifest(folder)) if world.is_rank_zero else None, world))
        broken = [_manifest_fault(folder)] if files is None else _broken_files(folder, files, world=world)
        if not broken:
            return folder
        logger.warning("%s is broken (%s); trying the one before", folder, ", ".join(broken))
    return None


def check_sound(folder: Path) -> None:
    """Compare all files of a checkpoint with its MANIFEST, in this process alone.

    Raises:
        RuntimeError: Naming the files that are missing or differ.
    """
    files = read_manifest(folder)
    broken = [_manifest_fault(folder)] if files is None else _broken_files(folder, files, world=None)
    if broken:
        raise RuntimeError(f"{folder} is broken ({', '.join(broken)}); remove it to fall back on the one before")


def read_state(folder: Path) -> dict[str, Any]:
    """Return our own state of a checkpoint."""
    return json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))


def write_durably(path: Path, text: str) -> None:
    """Write a small text file and wait until the disk has it."""
    with path.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def measure_files(folder: Path, world: World) -> Files:
    """Return size and checksum of a folder's files, once the disk has them; every rank reads each world_size-th file.

    Rank 0 alone lists the folder: on a network file system the others may not see every name yet. Communication: a
    broadcast of the names, one all-reduce of the numbers.

    Raises:
        OSError: On the rank that cannot list or read its share; the caller tells the others.
    """
    names: list[str] = []
    failure: OSError | None = None
    try:
        names = _file_names(folder) if world.is_rank_zero else []
    except OSError as error:
        failure = error
    names = json.loads(broadcast_text(json.dumps(names), world))
    measured = np.zeros((len(names), 2))
    for i in range(world.rank, len(names), world.world_size):
        try:
            measured[i] = _sync_and_measure(folder / names[i])
        except OSError as error:
            failure = error
    totals = sum_over_ranks(measured)  # below 2^53, so exact in float64
    if failure is not None:
        raise failure
    return {name: [int(size), int(crc)] for name, (size, crc) in zip(names, totals, strict=True)}


def write_manifest(folder: Path, files: Files) -> None:
    """Write the MANIFEST, which makes a checkpoint count."""
    listed = json.dumps(files, sort_keys=True)
    values = {"version": _VERSION, "crc32": zlib.crc32(listed.encode()), "files": files}
    write_durably(folder / MANIFEST_FILE, json.dumps(values, indent=1))


def read_manifest(folder: Path) -> Files | None:
    """Return the files that a checkpoint's MANIFEST lists, None where it is damaged or of another version."""
    try:
        values = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        listed = json.dumps(values["files"], sort_keys=True)
        is_sound = values["version"] == _VERSION and values["crc32"] == zlib.crc32(listed.encode())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return values["files"] if is_sound else None


def _manifest_fault(folder: Path) -> str:
    """Return what to call a MANIFEST that cannot be used: one of another format is not damaged."""
    try:
        found = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8")).get("version", "before 1")
    except (OSError, ValueError, AttributeError):
        return MANIFEST_FILE
    return MANIFEST_FILE if found == _VERSION else f"{MANIFEST_FILE} of format {found}, this version reads {_VERSION}"


def _file_names(folder: Path) -> list[str]:
    """Return the relative paths of a folder's files, sorted, without the manifest."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST_FILE)
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _sync_and_measure(path: Path) -> tuple[int, int]:
    """Return a file's size and checksum; what the power may take away before that is no checkpoint yet."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return path.stat().st_size, _crc32(path)


def _crc32(path: Path) -> int:
    """Return a file's checksum, read in blocks."""
    checksum = 0
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _broken_files(folder: Path, files: Files, *, world: World | None) -> list[str]:
    """Return the files that are missing or differ; with a world every rank reads its share (one all-reduce)."""
    rank, world_size = (world.rank, world.world_size) if world else (0, 1)
    names = sorted(files)
    is_broken = np.zeros(len(names))
    for i in range(rank, len(names), world_size):
        is_broken[i] = not _is_as_listed(folder / names[i], *files[names[i]])
    if world:
        is_broken = sum_over_ranks(is_broken)
    return [names[i] for i in np.flatnonzero(is_broken)]


def _is_as_listed(path: Path, size: int, checksum: int) -> bool:
    """Return whether a file has this size and checksum; one that cannot be read has not."""
    try:
        return path.stat().st_size == size and _crc32(path) == checksum
    except OSError:
        return False
