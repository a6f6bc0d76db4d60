"""Build a folder so that it is whole or absent, also when the process is killed or two build it at once.

The one idea: everything is written into a folder beside, forced to disk and renamed. A rename either happened or not.
The lock is required, and not only to spare the second job the work: a build first removes what earlier builds of this
machine left behind, which without the lock would be the folder another process is just writing.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; it ends with the process, however the process ends.

    A record lock: the other kind (flock) passes to forked workers and is held until the last of them is gone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # which of the two is up to the system
            _logger.info("Another process makes the same; waiting for it (%s).", path)
            fcntl.lockf(stream, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def building(folder: Path) -> Iterator[Path]:
    """Yield a folder to build in that becomes `folder` when the block ends, and vanishes when it raises.

    The caller must hold the lock of `folder`: what an earlier process of this machine left behind is removed first.
    """
    prefix = f".building-{folder.name}-{socket.gethostname()}-"
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left_behind in folder.parent.glob(f"{prefix}*"):
        _logger.info("Removing %s, which an interrupted preparation left behind.", left_behind)
        shutil.rmtree(left_behind)
    place = folder.parent / f"{prefix}{os.getpid()}"
    place.mkdir()
    try:
        yield place
        _force_to_disk(place)
        place.rename(folder)
        _sync_folder(folder.parent)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _force_to_disk(folder: Path) -> None:
    """Force every file and folder below a folder to disk, so that the rename cannot come before them."""
    for root, _, names in os.walk(folder):
        for name in names:
            with (Path(root) / name).open("rb") as stream:
                os.fsync(stream.fileno())
        _sync_folder(Path(root))


def _sync_folder(folder: Path) -> None:
    """Force the entries of a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
