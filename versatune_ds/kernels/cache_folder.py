"""Choose the cache folder of a compiled library, and refuse folders that other users can write to.

A library is code that this process runs. If the cache is in a shared place (`TORCH_EXTENSIONS_DIR` under /tmp, a team's
disk), another user could put a file there under the name that we look for. So a folder is used only if it belongs to us
or to root and nobody else can write to it; otherwise the user's own cache is tried.

Not covered: access control lists, and others who may act as this user or as root.
"""

from __future__ import annotations

import functools
import logging
import os
import stat
from pathlib import Path

logger = logging.getLogger(__name__)


def cache_roots() -> tuple[Path, ...]:
    """Return the directories in which compiled libraries may be, the preferred one first.

    The first is PyTorch's: TORCH_EXTENSIONS_DIR if it is set. The other, or the only one, is the user's cache.
    """
    user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    own = Path(user_cache) / "torch_extensions"
    own = own.absolute()
    named = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or own).absolute()
    return (named,) if named == own else (named, own)


def choose_folder(name: str, *, library: str) -> Path:
    """Return the first folder of a name that is, or can be made, safe to load a library from.

    Args:
        name: Name of the folder in a cache root.
        library: Name of the library's file in it.

    Raises:
        RuntimeError: If there is none, with the reason for each place.
    """
    reasons = []
    for root in cache_roots():
        folder = root / name
        reason = unsafe_reason(root, folder, library=library)
        if not reason:
            return folder
        _warn_once(reason)
        reasons.append(reason)
    raise RuntimeError(f"{'; '.join(reasons)}. Set TORCH_EXTENSIONS_DIR to a folder that only you can write to")


def unsafe_reason(root: Path, folder: Path, *, library: str) -> str:
    """Return why a library must not be loaded from, or built in, a folder; empty if it may."""
    try:
        for path in (*_folders_to_check(root), folder, folder / library):
            if not path.exists():
                continue
            status = path.stat()
            if status.st_uid not in (os.geteuid(), 0):
                return f"kernel cache {path}: belongs to user {status.st_uid}, not to {os.geteuid()} or root"
            is_inside = path in (folder, folder / library)
            if is_inside and is_writable_by_others(path) and not _can_be_made_private(folder):
                return f"kernel cache {path}: other users can write to it"
            # With the sticky bit, as on /tmp, only the owner of a file can replace it.
            is_replaceable = status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX
            if not is_inside and is_replaceable:
                return f"kernel cache {path}: every user can replace the files in it"
        if not folder.exists() and not os.access(_nearest_folder(root), os.W_OK):
            return f"kernel cache {root}: cannot be written"
    except OSError as error:
        return f"kernel cache {folder}: {error.strerror or error}"
    return ""


def make_private(folder: Path) -> None:
    """Make a cache folder that only this user can read and write, whatever the umask.

    Raises:
        RuntimeError: If another user made it first.
    """
    for path in (*reversed(folder.parents), folder):
        if not path.exists():
            path.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise RuntimeError(f"kernel cache {folder}: expected a folder of user {os.geteuid()}; remove it")


def close_to_others(folder: Path) -> None:
    """Remove other users' permission to write to our folder, and delete libraries they may have put there.

    The caller has the lock. Earlier versions made the folder with the umask, which may let the group write to it.
    """
    if any(map(is_writable_by_others, (folder, *folder.glob("*.so")))):
        folder.chmod(0o700)
        for path in folder.glob("*.so"):
            path.unlink()
        logger.warning("kernel cache %s: other users could write to it; made private, and built again", folder)


def _can_be_made_private(folder: Path) -> bool:
    """Return whether a folder belongs to this user, who can make it private before anything is built in it."""
    return folder.lstat().st_uid == os.geteuid() and not folder.is_symlink()


def is_writable_by_others(path: Path) -> bool:
    """Return whether the group of a file or folder, or everybody, can write to it."""
    return bool(path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _folders_to_check(root: Path) -> list[Path]:
    """Return a cache root and, if it is inside a shared folder like /tmp, the folders between the two.

    Example: /tmp/versatune-7/torch_extensions and /tmp/versatune-7, whose owner could replace the former.
    """
    found: list[Path] = []
    for path in (root, *root.parents):
        if path.exists() and path.stat().st_mode & stat.S_IWOTH and path.stat().st_mode & stat.S_ISVTX:
            return found
        found.append(path)
    return [root]


def _nearest_folder(path: Path) -> Path:
    """Return a path, or the nearest folder above it that exists."""
    return next(parent for parent in (path, *path.parents) if parent.exists())


@functools.cache
def _warn_once(reason: str) -> None:
    logger.warning("%s; not used", reason)
