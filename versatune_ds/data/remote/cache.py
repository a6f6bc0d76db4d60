"""Return the files of an address as files on disk: fetch those that are new or changed, keep the others.

What a source's files were is recorded when they are listed, so that a run also starts where the other side cannot be
reached and everything was fetched before; that is logged. The first process of a node asks the other side, at most once
a minute; the processes beside it take what that one found, and so have the same files.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from versatune_ds.data.remote.addresses import shown, store_of
from versatune_ds.data.remote.errors import (
    RemoteChangedError,
    RemoteError,
    RemoteUnreachableError,
)
from versatune_ds.data.remote.fetch import cached_path, fetch, is_cached
from versatune_ds.data.remote.listing import list_files
from versatune_ds.data.remote.remote_file import RemoteFile
from versatune_ds.data.remote.retries import PAUSES_SECONDS, with_retries
from versatune_ds.data.remote.source import RemoteSource, read_record, user_error, write_record
from versatune_ds.data.remote.stores import Store, open_store
from versatune_ds.distributed.world import discover_world
from versatune_ds.log import warn_once
from versatune_ds.progress import ByteWork, shown_while

_logger = logging.getLogger(__name__)

_NUM_THREADS = 4
_LONG_BYTES = 64 << 20
"""Bytes from which a line is logged before fetching too, not only after it."""
_CHECK_SECONDS = 60.0
"""How long a process relies on what it found; a process of a run never asks twice."""
_checked: dict[tuple[Path | None, str], tuple[float, tuple[RemoteFile, ...]]] = {}
_silent: dict[str, tuple[float, str]] = {}
"""Stores that could not be reached: when, and why; for a minute they are not asked for what is in the cache."""


def forget_checks() -> None:
    """Ask the other side again at the next use, whatever was found before."""
    _checked.clear()
    _silent.clear()


def remote_files(source: RemoteSource) -> tuple[RemoteFile, ...]:
    """Return the files of a source without fetching them.

    Raises:
        ValueError: If it does not exist, is not allowed, or cannot be listed and was not recorded.
    """
    place = (source.cache_dir, source.address)
    checked, files = _checked.get(place, (-math.inf, ()))
    world = discover_world(os.environ)
    if time.monotonic() - checked < (_CHECK_SECONDS if world.world_size == 1 else math.inf):
        return files
    recorded = read_record(source)
    if world.local_rank > 0 and recorded and all(is_cached(file, folder=source.folder) for file in recorded):
        return recorded
    files = _list(source, recorded=recorded)
    _checked[place] = (time.monotonic(), files)
    return files


def fetch_files(source: RemoteSource, files: Sequence[RemoteFile] | None = None) -> list[Path]:
    """Return the files of a source as files on disk, in their order.

    Args:
        source: The source.
        files: Some of its files; all by default.

    Raises:
        ValueError: If they cannot be listed or fetched, or the disk is too small.
    """
    files = remote_files(source) if files is None else files
    missing = [file for file in files if not is_cached(file, folder=source.folder)]
    if missing:
        files = _fetch_missing(files, missing, source=source)
    return [cached_path(file, folder=source.folder) for file in files]


def read_beginning(file: RemoteFile, *, source: RemoteSource, num_bytes: int) -> bytes:
    """Return the first bytes of a file, without storing them.

    Raises:
        ValueError: If it cannot be read.
    """
    store = open_store(file.address, key=source.key)

    def read() -> bytes:
        beginning = b""
        _, blocks = store.read(file, start=0)
        with contextlib.closing(blocks):
            for block in blocks:
                beginning += block
                if len(beginning) >= num_bytes:
                    break
        return beginning[:num_bytes]

    try:
        return with_retries(read, address=file.address)
    except RemoteError as error:
        error.address = shown(file.address)
        raise user_error(error, source=source) from error


def _list(source: RemoteSource, *, recorded: tuple[RemoteFile, ...] | None) -> tuple[RemoteFile, ...]:
    """Ask which files there are; where nobody answers, return the recorded ones if all of them were fetched."""
    store = open_store(source.address, key=source.key)
    is_complete = recorded and all(is_cached(file, folder=source.folder) for file in recorded)
    host = store_of(source.address)
    failed, reason = _silent.get(host, (-math.inf, ""))
    try:
        if is_complete and time.monotonic() - failed < _CHECK_SECONDS:
            raise RemoteUnreachableError(reason)  # without asking, which may take a minute to fail
        files = with_retries(
            lambda: list_files(source.address, store=store, key=source.key),
            address=source.address,
            pauses_seconds=PAUSES_SECONDS[:1] if is_complete else PAUSES_SECONDS,
        )
    except RemoteUnreachableError as error:
        if not is_complete:
            raise user_error(error, source=source) from error
        if time.monotonic() - failed >= _CHECK_SECONDS:
            _silent[host] = (time.monotonic(), str(error))
        warn_once(
            f"{source.key}: {shown(source.address)} cannot be reached ({error}), so whether it changed is not known; "
            "the files fetched before are used"
        )
        return recorded
    except RemoteError as error:
        raise user_error(error, source=source) from error
    _silent.pop(host, None)
    _warn_of_weak_checks(files, source=source)
    write_record(files, source=source)
    return tuple(files)


def _fetch_missing(
    files: Sequence[RemoteFile], missing: Sequence[RemoteFile], *, source: RemoteSource
) -> tuple[RemoteFile, ...]:
    """Fetch the files that are not in the cache, several at once, and return all that were asked for.

    A file that changed since it was listed is listed again, once.
    """
    num_bytes = sum(file.num_bytes or 0 for file in missing)
    _check_room(num_bytes, source=source)
    what = f"{len(missing)} {'file' if len(missing) == 1 else 'files'} of {shown(source.address)}"
    if num_bytes >= _LONG_BYTES:
        _logger.info("%s: fetching %s, %.1f MiB, into %s", source.key, what, num_bytes / 2**20, source.folder)
    work, store = ByteWork(f"fetching {what}", num_bytes=num_bytes or None), open_store(source.address, key=source.key)
    with shown_while(work), ThreadPoolExecutor(max_workers=_NUM_THREADS) as pool:
        fetches = [pool.submit(_fetch_one, file, store=store, source=source, work=work) for file in missing]
        try:
            fetched = {file.address: done.result() for file, done in zip(missing, fetches, strict=True)}
        except BaseException as error:
            work.is_cancelled = True  # or Ctrl-C would wait for the files that are on their way
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, RemoteError):
                raise user_error(error, source=source) from error
            raise
    seconds = max(time.monotonic() - work.started, 1e-9)
    mib = work.num_done / 2**20
    _logger.info("%s: fetched %s: %.1f MiB in %.1f s, %.1f MiB/s", source.key, what, mib, seconds, mib / seconds)
    all_files = tuple(fetched.get(file.address, file) for file in remote_files(source))
    write_record(all_files, source=source)
    _checked[source.cache_dir, source.address] = (time.monotonic(), all_files)
    return tuple(fetched.get(file.address, file) for file in files)


def _fetch_one(file: RemoteFile, *, store: Store, source: RemoteSource, work: ByteWork) -> RemoteFile:
    """Fetch a file, delete its earlier versions, and return it as it was fetched."""
    try:
        path = fetch(file, store=store, folder=source.folder, work=work)
    except RemoteChangedError:
        _logger.warning("%s: %s changed while it was fetched; fetching it again", source.key, shown(file.address))
        file = store.info(file.address)
        path = fetch(file, store=store, folder=source.folder, work=work)
    except RemoteError as error:
        error.address = shown(file.address)
        raise
    for earlier in path.parent.parent.iterdir():
        if earlier != path.parent and not earlier.name.startswith("."):
            shutil.rmtree(earlier, ignore_errors=True)
    return file


def _check_room(num_bytes: int, *, source: RemoteSource) -> None:
    source.folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(source.folder).free
    if num_bytes > free:
        raise ValueError(
            f"{source.key}: {shown(source.address)} needs {num_bytes / 2**30:.1f} GiB, {source.folder} has "
            f"{free / 2**30:.1f} GiB free; make room, or set data.cache_dir"
        )


def _warn_of_weak_checks(files: Sequence[RemoteFile], *, source: RemoteSource) -> None:
    unknown = [file for file in files if file.version is None]
    if unknown:
        warn_once(
            f"{source.key}: the server of {shown(unknown[0].address)} states neither an ETag nor a time, so a change "
            "that keeps the size is not noticed; delete the cache after one"
        )
