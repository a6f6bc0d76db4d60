"""Lock files between processes, so that two at once do not write the same files or do the same work.

The locks are POSIX record locks (`lockf`), which end with their process. The locks of `flock`, which the library
filelock takes too, are inherited by forked workers: after a kill they last until the last worker is gone, and a restart
would wait for them. A record lock is lost when its process closes the file a second time, so each file is opened once.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from versatune_ds.log import warn_once
from versatune_ds.run_folder.owner import Owner, this_process

_logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.2


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
def locked(path: Path, *, what: str, while_waiting: Callable[[], None] | None = None) -> Iterator[bool]:
    """Hold an exclusive lock on a file within a block, waiting for it where need be; yield whether it is locked.

    Where the file system has no locks, that is logged and the block runs all the same: two processes at once then do
    the same work.

    Args:
        path: The lock file; while it is locked it contains who locked it.
        what: What the block uses alone, for the message to those that wait: `the sequences drawn from this model`.
        while_waiting: Called several times a second while waiting; what it raises ends the wait. For threads, which
            Ctrl-C does not interrupt.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as stream:  # or what a full disk refused would be written again at the end
        is_locked = False
        try:
            if not try_lock(stream):
                _logger.info("waiting for %s, in use by %s (%s)", what, _owner_in(stream), path)
                _wait(stream, while_waiting=while_waiting)
            is_locked = True
        except OSError as error:
            warn_once(f"{path.parent}: no file can be locked there ({error}); a second process would do the same work")
        if is_locked:
            _write_owner(stream, this_process().to_json())
        try:
            yield is_locked
        finally:
            if is_locked:
                _write_owner(stream, "")  # before unlocking, or it would delete the next one's


def _wait(stream: BinaryIO, *, while_waiting: Callable[[], None] | None) -> None:
    """Lock an open file once the process that has locked it lets it go."""
    if while_waiting is None:
        fcntl.lockf(stream, fcntl.LOCK_EX)
        return
    while not try_lock(stream):
        while_waiting()
        time.sleep(_POLL_SECONDS)


def _owner_in(stream: BinaryIO) -> str:
    """Return the process that a lock file names; it names none while that process is only just locking it."""
    with contextlib.suppress(OSError, ValueError):
        stream.seek(0)
        return str(Owner.from_json(stream.read().decode("utf-8")))
    return "another process"


def _write_owner(stream: BinaryIO, text: str) -> None:
    """Put a text in the place of a lock file's content; on a full disk the lock alone has to do."""
    with contextlib.suppress(OSError):
        stream.truncate(0)
        stream.write(text.encode("utf-8"))
