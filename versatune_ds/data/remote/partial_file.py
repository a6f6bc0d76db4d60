"""Store what has arrived of a download, so that a restarted process resumes it.

The bytes lie in a hidden folder beside the complete versions of the file. A record beside it states how many of them
are certainly on disk: after a power cut a file can have its length and end in zeros, so no more than those are used.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from pathlib import Path
from types import TracebackType

from versatune_ds.data.remote.errors import RemoteChangedError
from versatune_ds.run_folder.atomic import rename_folder, write_json

SYNC_BYTES = 64 << 20
"""Bytes after which what has arrived is forced to disk and recorded."""


class PartialFile:
    """A file that is being written; within a `with` block, at whose end it is kept, unless `finish` was called.

    Args:
        path: Where the complete file will be.
        is_kept: Whether a later process may resume it: it has a version, and a lock excludes other processes.
    """

    def __init__(self, path: Path, *, is_kept: bool) -> None:
        self.num_bytes = 0
        self._path, self._is_kept = path, is_kept
        self._folder = partial_folder(path)
        if not is_kept:
            self._folder = self._folder.with_name(f"{self._folder.name}-{socket.gethostname()}-{os.getpid()}")
        self._record = self._folder.with_name(f"{self._folder.name}-length")
        self._num_synced = 0

    def __enter__(self) -> PartialFile:
        if not self._is_kept:
            self._delete()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._stream = (self._folder / self._path.name).open("ab", buffering=0)
        self.truncate(min(self._recorded(), os.fstat(self._stream.fileno()).st_size))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if not self._stream.closed:
            with contextlib.suppress(OSError):  # a full disk, which is the error already
                self._sync()
            self._stream.close()
        if not self._is_kept or isinstance(error, RemoteChangedError):
            self._delete()

    def write(self, block: bytes) -> None:
        """Append bytes."""
        rest = memoryview(block)
        while rest:
            num_written = self._stream.write(rest)
            self.num_bytes += num_written
            rest = rest[num_written:]
        if self.num_bytes - self._num_synced >= SYNC_BYTES:
            self._sync()

    def truncate(self, num_bytes: int) -> None:
        """Keep the first bytes only."""
        self._stream.truncate(num_bytes)
        self.num_bytes = self._num_synced = num_bytes

    def finish(self) -> None:
        """Force the file to disk, and give its folder the final name."""
        os.fsync(self._stream.fileno())
        self._stream.close()
        try:
            rename_folder(self._folder, self._path.parent)
        except OSError:
            if not self._path.is_file():  # if it is there, another process fetched it: no lock excluded that
                raise
        self._record.unlink(missing_ok=True)

    def _sync(self) -> None:
        os.fsync(self._stream.fileno())
        if self._is_kept:
            write_json(self._record, {"num_bytes": self.num_bytes})
        self._num_synced = self.num_bytes

    def _recorded(self) -> int:
        try:
            return int(json.loads(self._record.read_text(encoding="utf-8"))["num_bytes"])
        except (OSError, ValueError, TypeError, KeyError):
            return 0

    def _delete(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._record.unlink(missing_ok=True)


def partial_folder(path: Path) -> Path:
    """Return the folder of what has arrived of a file; hidden, beside the folder of the complete file."""
    return path.parent.with_name(f".{path.parent.name}.partial")


def num_bytes_arrived(path: Path) -> int:
    """Return how many bytes of a file a process has stored, which may still be at it."""
    try:
        return (partial_folder(path) / path.name).stat().st_size
    except OSError:
        return 0
