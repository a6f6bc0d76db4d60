"""Find out whether files can be made in a folder before hours are spent on what goes into it; torch is not needed."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

WAY_OUT = "choose another folder"
_REFUSALS = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR)
"""Of a folder that exists; a disk that is full is another matter, because room can be made there."""


def unwritable_path(folder: Path) -> Path | None:
    """Return what stands in the way of making files in a folder, which need not exist: itself or the nearest parent.

    A nameless file is made there and dropped: permission bits say nothing of a read-only mount, and root passes them.

    Returns:
        The path that cannot be written; None where nothing stands in the way.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            return None
    except OSError as error:
        return existing if error.errno in _REFUSALS else None


def check_writable(folder: Path, *, key: str) -> None:
    """Raise ValueError under a recipe key, or an option, if files cannot be made in its folder."""
    path = unwritable_path(folder)
    if path is not None:
        raise ValueError(f"{key}: {path} cannot be written; {WAY_OUT}")
