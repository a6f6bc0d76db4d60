"""Build a folder so that it is whole or absent, also when the process is killed or two build it at once.

The one idea: everything is written into a folder beside, forced to disk and renamed. A rename either happened or not.
The lock spares the second job the work; a build first removes what dead ones of this machine left behind.
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

from versatune_ds.warn_once import warn_once

_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; it ends with the process, however the process ends.

    A record lock: the other kind (flock) passes to forked workers and is held until the last of them is gone. Where the
    file system has none, that is logged and the block runs all the same: two at once then do the same work.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # which of the two is up to the system
            _logger.info("Another process makes the same; waiting for it (%s).", path)
            fcntl.lockf(stream, fcntl.LOCK_EX)
        except OSError as error:
            warn_once(f"{path.parent}: no file can be locked there ({error}); a second process would do the same work")
        yield


@contextlib.contextmanager
def building(folder: Path) -> Iterator[Path]:
    """Yield a folder to build in that becomes `folder` when the block ends, and vanishes when it raises.

    The caller holds the lock of `folder`: what an earlier process of this machine left behind is removed first. Without
    locks another one may be building the same: it is left alone, and the first one done gives `folder` its name.
    """
    prefix = f".building-{folder.name}-{socket.gethostname()}-"
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left_behind in folder.parent.glob(f"{prefix}*"):
        if _is_running(left_behind.name.removeprefix(prefix)):
            continue
        _logger.info("Removing %s, which an interrupted preparation left behind.", left_behind)
        shutil.rmtree(left_behind)
    place = folder.parent / f"{prefix}{os.getpid()}"
    place.mkdir()
    try:
        yield place
        _force_to_disk(place)
        try:
            place.rename(folder)
        except OSError:
            if not folder.is_dir():  # there, it is another process's, made of the same
                raise
        _sync_folder(folder.parent)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _is_running(pid: str) -> bool:
    """Return whether another process of this machine has this pid."""
    if not pid.isdigit() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


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
