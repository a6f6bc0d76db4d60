"""A disk that takes nothing more: a failure of the machine, reported in one line and without a traceback."""

from __future__ import annotations

import errno

_FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskError(RuntimeError):
    """A file that a run cannot do without could not be written; the message has the reason and the way out."""


def is_full_disk(error: BaseException) -> bool:
    """Return whether an error means that a disk, or a user's share of it, is full."""
    return isinstance(error, OSError) and error.errno in _FULL


def with_full_disk_named(error: Exception) -> Exception:
    """Return a DiskError for a full disk, any other error as it is."""
    if not is_full_disk(error):
        return error
    where = f"{error.filename}: " if error.filename else ""
    return DiskError(f"{where}{error.strerror}; free some disk space and start again")
