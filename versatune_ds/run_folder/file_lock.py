"""Lock files between processes, so that two at once do not do the same work.

The locks are POSIX record locks (`lockf`), which end with their process. The locks of `flock`, which the library
filelock takes too, are inherited by forked workers: after a kill they last until the last worker is gone, and a restart
would wait for them. A record lock is lost when its process closes the file a second time, so each file is opened once.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from versatune_ds.log import warn_once

_logger = logging.getLogger(__name__)


def try_lock(stream: BinaryIO) -> bool:
    """Lock an open file for this process; return False at once if another process has locked it.

    Raises:
        OSError: If the file system has no locks.
    """
    try:
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # which of the two depends on the system
        return False
    return True


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file within a block, waiting for it where need be.

    Where the file system has no locks, that is logged and the block runs all the same: two processes at once then do
    the same work.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as stream:
        try:
            if not try_lock(stream):
                _logger.info("Waiting for a process, of this run or another, that does the same work (%s).", path)
                fcntl.lockf(stream, fcntl.LOCK_EX)
        except OSError as error:
            warn_once(f"{path.parent}: no file can be locked there ({error}); a second process would do the same work")
        yield
