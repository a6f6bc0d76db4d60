"""Fetch one remote file into a folder of the cache, complete or not at all.

A file is fetched as it is, not by blocks as it is read: preparing data reads every byte of it, and digests them. What
lies in the cache under a version's name is complete: it is written in a hidden folder, its size is compared with the
store's, the store is asked again whether the file changed meanwhile, and only then does the folder get its name.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO

from versatune_ds.data.remote.addresses import shown
from versatune_ds.data.remote.errors import RemoteChangedError, RemoteError, RemoteUnreachableError
from versatune_ds.data.remote.remote_file import RemoteFile
from versatune_ds.data.remote.retries import with_retries
from versatune_ds.data.remote.stores import Store
from versatune_ds.progress import ByteWork
from versatune_ds.run_folder.atomic import atomic_folder
from versatune_ds.run_folder.file_lock import locked


def digits_of(text: str) -> str:
    """Return 16 hexadecimal digits of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cached_path(file: RemoteFile, *, folder: Path) -> Path:
    """Return where a version of a file lies in the cache, or will."""
    version = digits_of(f"{file.num_bytes} {file.version}")
    return folder / digits_of(file.address) / version / file.name


def is_cached(file: RemoteFile, *, folder: Path) -> bool:
    """Return whether this version of a file was fetched, and has its size still."""
    path = cached_path(file, folder=folder)
    return path.is_file() and file.num_bytes in (None, path.stat().st_size)


def fetch(file: RemoteFile, *, store: Store, folder: Path, work: ByteWork) -> Path:
    """Fetch a version of a file unless it was fetched before, and return its path in the cache.

    Of processes that need it at once, one fetches it and the others wait.

    Raises:
        RemoteError: If it cannot be fetched, or changes all the time.
    """
    path = cached_path(file, folder=folder)
    lock = folder.parent / "locks" / f"remote-{digits_of(file.address)}"
    with locked(lock, what=f"{shown(file.address)}, which is being fetched"):
        if not is_cached(file, folder=folder):
            if path.is_file():
                path.unlink()  # it lost its end, or was changed here
                path.parent.rmdir()
            with atomic_folder(path.parent) as place, (place / file.name).open("xb") as stream:
                _copy(file, store=store, stream=stream, work=work)
    return path


def _copy(file: RemoteFile, *, store: Store, stream: BinaryIO, work: ByteWork) -> None:
    """Copy a file's bytes; what breaks off is continued from the last byte that arrived."""

    def copy_the_rest() -> None:
        start, blocks = store.read(file, start=stream.tell())
        if start < stream.tell():  # the server cannot begin in the middle
            work.add(start - stream.tell())
            stream.seek(start)
            stream.truncate()
        for block in blocks:
            stream.write(block)
            work.add(len(block))
            if work.is_cancelled:
                raise RemoteError("stopped, because another file cannot be fetched")
        if file.num_bytes is not None and stream.tell() < file.num_bytes:
            raise RemoteUnreachableError(f"the connection ended after {stream.tell():,} of {file.num_bytes:,} bytes")

    with_retries(copy_the_rest, address=file.address)
    now = with_retries(lambda: store.info(file.address), address=file.address)
    has_other_size = file.num_bytes not in (None, stream.tell())
    if has_other_size or (now.num_bytes, now.version) != (file.num_bytes, file.version):
        raise RemoteChangedError("it changed while it was fetched")
