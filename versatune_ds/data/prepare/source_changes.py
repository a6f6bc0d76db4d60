"""Find data files that change while they are prepared.

A file is opened several times: for its digest, to count its records and for each of its blocks. If it were replaced
meanwhile, blocks of two contents would be stored under the digest of the first one. So every block is checked after it
was read: one that is kept has the content that the digest was computed from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class FileState:
    """What changes when a file is replaced or written to."""

    inode: int
    size: int
    mtime_ns: int


def states_of(paths: Iterable[Path]) -> dict[Path, FileState]:
    """Return the states of files, to be compared when they have been read."""
    return {path: _state(path) for path in paths}


def check_unchanged(states: dict[Path, FileState]) -> None:
    """Raise RuntimeError if a file is not as it was."""
    for path, before in states.items():
        if not path.exists() or _state(path) != before:
            raise RuntimeError(
                f"{path}: was changed or replaced while it was prepared; start again, and leave data files "
                f"as they are until they are prepared"
            )


def _state(path: Path) -> FileState:
    found = path.stat()
    return FileState(found.st_ino, found.st_size, found.st_mtime_ns)
