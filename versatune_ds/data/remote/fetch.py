"""Fetch one remote file into a folder of the cache, complete or not at all.

A file is fetched as it is, not by blocks as it is read: preparing data reads every byte of it, and digests them. What
lies in the cache under a version's name is complete: it is written in a hidden folder (`partial_file.py`), its size is
compared with the store's, the store is asked again whether the file changed meanwhile, and only then does the folder
get its name. Where the process ends before, the next one resumes from what arrived of that version.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import time
from pathlib import Path

from versatune_ds.data.remote.addresses import redacted
from versatune_ds.data.remote.errors import RemoteChangedError, RemoteError, RemoteUnreachableError
from versatune_ds.data.remote.partial_file import PartialFile
from versatune_ds.data.remote.remote_file import RemoteFile
from versatune_ds.data.remote.retries import with_retries
from versatune_ds.data.remote.stores import Store
from versatune_ds.progress import ByteWork
from versatune_ds.run_folder.file_lock import locked

_logger = logging.getLogger(__name__)

UNUSED_DAYS = 7
"""Days without use after which an earlier version of a file is deleted, when a new one is fetched."""
PROGRESS_BYTES = 1 << 20
"""Bytes that must arrive for the repetitions after interruptions to be counted from one again."""


def short_digest(text: str) -> str:
    """Return 16 hexadecimal digits of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cached_path(file: RemoteFile, *, folder: Path) -> Path:
    """Return where a version of a file lies in the cache, or will."""
    version = short_digest(f"{file.num_bytes} {file.version}")
    return folder / short_digest(file.address) / version / file.name


def is_cached(file: RemoteFile, *, folder: Path) -> bool:
    """Return whether this version of a file was fetched, and has its size still."""
    path = cached_path(file, folder=folder)
    return path.is_file() and file.num_bytes in (None, path.stat().st_size)


def fetch(file: RemoteFile, *, store: Store, folder: Path, work: ByteWork) -> Path:
    """Fetch a version of a file unless it was fetched before, and return its path in the cache.

    Of processes that need it at once, one fetches it and the others wait.

    Raises:
        RemoteError: If it cannot be fetched, or changes all the time.
        OSError: If it cannot be written.
    """
    path = cached_path(file, folder=folder)
    lock = folder.parent / "locks" / f"remote-{short_digest(file.address)}"
    what = f"{redacted(file.address)}, which is being fetched"
    with locked(lock, what=what, while_waiting=lambda: _check_not_cancelled(work)) as is_locked:
        if not is_cached(file, folder=folder):
            if path.is_file():
                path.unlink()  # it is truncated, or was changed here
                path.parent.rmdir()
            with PartialFile(path, is_kept=is_locked and file.version is not None) as partial:
                _copy(file, store=store, partial=partial, work=work)
                partial.finish()
            _delete_unused(path.parent)
    return path


def mark_used(path: Path) -> None:
    """Record that a cached version is in use, so that it is not deleted as an earlier one for `UNUSED_DAYS`."""
    with contextlib.suppress(OSError):  # another user's cache
        os.utime(path.parent)


def _copy(file: RemoteFile, *, store: Store, partial: PartialFile, work: ByteWork) -> None:
    """Copy a file's bytes; after an interruption, resume from the last byte that arrived."""
    if partial.num_bytes:
        text = "%s: resuming after %s bytes that were fetched before"
        _logger.info(text, redacted(file.address), f"{partial.num_bytes:,}")
        work.add(partial.num_bytes)
    most = partial.num_bytes

    def copy_the_rest() -> None:
        start, blocks = store.read(file, start=partial.num_bytes)
        if start < partial.num_bytes:  # the server cannot begin in the middle
            work.add(start - partial.num_bytes)
            partial.truncate(start)
        for block in blocks:
            _check_not_cancelled(work)
            partial.write(block)
            work.add(len(block))
        if file.num_bytes is not None and partial.num_bytes < file.num_bytes:
            raise RemoteUnreachableError(
                f"the connection ended after {partial.num_bytes:,} of {file.num_bytes:,} bytes"
            )

    def has_progressed() -> bool:
        nonlocal most
        has = partial.num_bytes >= most + PROGRESS_BYTES
        most = partial.num_bytes if has else most
        return has

    ask = {"address": file.address, "is_cancelled": lambda: work.is_cancelled}
    if file.num_bytes is None or partial.num_bytes != file.num_bytes:
        with_retries(copy_the_rest, has_progressed=has_progressed, **ask)
    now = with_retries(lambda: store.info(file.address), **ask)
    has_other_size = file.num_bytes not in (None, partial.num_bytes)
    if has_other_size or (now.num_bytes, now.version) != (file.num_bytes, file.version):
        raise RemoteChangedError("it changed while it was fetched")


def _check_not_cancelled(work: ByteWork) -> None:
    if work.is_cancelled:
        raise RemoteError("stopped, because another file cannot be fetched")


def _delete_unused(version: Path) -> None:
    """Delete other versions of a file, and parts of them, that no process has used for `UNUSED_DAYS`.

    Called under the file's lock. Not at once: a run of an earlier version may still be reading it.
    """
    for other in version.parent.iterdir():
        with contextlib.suppress(OSError):
            if other == version or time.time() - other.stat().st_mtime < UNUSED_DAYS * 86_400:
                continue
            _logger.info("deleting %s, an earlier version unused for %d days", other, UNUSED_DAYS)
            if other.is_dir():
                shutil.rmtree(other)
            else:
                other.unlink()
