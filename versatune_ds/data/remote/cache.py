"""Return the files of an address as files on disk: fetch those that are new or changed, keep the others.

What a source's files were is recorded when they are listed, so that a run also starts where the server cannot be
reached and everything was fetched before; that is logged. Rank 0 asks the server, at most once a minute in a process
of its own and once in a run; the other ranks use what it recorded since they started, and so have the same files. The
first process of a node asks too where its node has a cache of its own, without such a record.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path

from versatune_ds.data.remote.addresses import redacted, store_of
from versatune_ds.data.remote.errors import (
    RemoteChangedError,
    RemoteError,
    RemoteMissingError,
    RemoteRefusedError,
    RemoteUnknownHostError,
    RemoteUnreachableError,
)
from versatune_ds.data.remote.fetch import cached_path, fetch, is_cached, mark_used
from versatune_ds.data.remote.listing import list_files
from versatune_ds.data.remote.partial_file import num_bytes_arrived
from versatune_ds.data.remote.remote_file import RemoteFile
from versatune_ds.data.remote.retries import PAUSES_SECONDS, with_retries
from versatune_ds.data.remote.source import RemoteSource, is_recorded_since, read_record, user_error, write_record
from versatune_ds.data.remote.stores import Store, open_store
from versatune_ds.log import warn_once
from versatune_ds.progress import ByteWork, shown_while

_logger = logging.getLogger(__name__)

_NUM_THREADS = 4
_LONG_BYTES = 64 << 20
"""Bytes from which a line is logged before fetching too, not only after it."""
_CHECK_SECONDS = 60.0
"""How long a process relies on what it found; one of several, which are a run, relies on it to its end."""
_STARTED = time.time()
"""When this process started, about; earlier records on disk may be of an earlier job."""
_checked: dict[tuple[Path | None, str], tuple[float, tuple[RemoteFile, ...]]] = {}
_silent: dict[str, tuple[float, str]] = {}
"""Stores that could not be reached: when, and why; for a minute they are not asked for what is in the cache."""
_failed: dict[str, tuple[float, RemoteUnreachableError]] = {}
"""Addresses, and stores where nothing answers, for which all repetitions failed: when, and why; as above."""


def forget_checks() -> None:
    """Ask the server again at the next use, whatever was found before."""
    _checked.clear()
    _silent.clear()
    _failed.clear()


def remote_files(source: RemoteSource) -> tuple[RemoteFile, ...]:
    """Return the files of a source without fetching them; none where it is a split that is missing.

    Raises:
        ValueError: If it does not exist, is not allowed, or cannot be listed and was not recorded.
    """
    from versatune_ds.distributed.world import (
        discover_world,
    )  # its room loads torch, which a local folder does not need

    place = (source.cache_dir, source.address)
    checked, files = _checked.get(place, (-math.inf, ()))
    world = discover_world(os.environ)
    if time.monotonic() - checked < (_CHECK_SECONDS if world.world_size == 1 else math.inf):
        return files
    recorded = read_record(source)
    is_listed_by_another = world.local_rank > 0 or (world.rank > 0 and is_recorded_since(_STARTED, source=source))
    if is_listed_by_another and _is_complete(recorded, source=source):
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
    paths = [cached_path(file, folder=source.folder) for file in files]
    for path in paths:
        mark_used(path)
    return paths


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
        error.address = redacted(file.address)
        raise user_error(error, source=source) from error


def _list(source: RemoteSource, *, recorded: tuple[RemoteFile, ...] | None) -> tuple[RemoteFile, ...]:
    """Ask which files there are; where nobody answers, return the recorded ones if all of them were fetched."""
    store = open_store(source.address, key=source.key)
    is_complete = _is_complete(recorded, source=source)
    host = store_of(source.address)
    failed, reason = _silent.get(host, (-math.inf, ""))
    try:
        if is_complete and time.monotonic() - failed < _CHECK_SECONDS:
            raise RemoteUnreachableError(reason)  # without asking, which may take a minute to fail
        _raise_if_failed(source)
        files = with_retries(
            lambda: list_files(source.address, store=store, key=source.key, is_split=source.is_split),
            address=source.address,
            pauses_seconds=PAUSES_SECONDS[:1] if is_complete else PAUSES_SECONDS,
        )
    except RemoteUnreachableError as error:
        if not is_complete:
            is_of_store = isinstance(error, (RemoteRefusedError, RemoteUnknownHostError))
            _failed.setdefault(host if is_of_store else source.address, (time.monotonic(), error))
            raise user_error(error, source=source) from error
        if time.monotonic() - failed >= _CHECK_SECONDS:
            _silent[host] = (time.monotonic(), str(error))
        warn_once(
            f"{source.key}: {redacted(source.address)} cannot be reached ({error}), so whether it changed is not "
            "known; the files fetched before are used"
        )
        return recorded
    except RemoteError as error:
        if not (source.is_split and isinstance(error, RemoteMissingError)):
            raise user_error(error, source=source) from error
        files = []
    for known in (_silent, _failed):
        known.pop(host, None)
    _failed.pop(source.address, None)
    _warn_of_weak_checks(files, source=source)
    write_record(files, source=source)
    return tuple(files)


def _raise_if_failed(source: RemoteSource) -> None:
    """Raise what all repetitions of asking for this source, or its store, ended with less than a minute ago."""
    for place in (source.address, store_of(source.address)):
        failed, error = _failed.get(place, (-math.inf, None))
        if error is not None and time.monotonic() - failed < _CHECK_SECONDS:
            raise error
        _failed.pop(place, None)


def _is_complete(recorded: Sequence[RemoteFile] | None, *, source: RemoteSource) -> bool:
    """Return whether a source was listed, and all its files were fetched."""
    return recorded is not None and all(is_cached(file, folder=source.folder) for file in recorded)


def _fetch_missing(
    files: Sequence[RemoteFile], missing: Sequence[RemoteFile], *, source: RemoteSource
) -> tuple[RemoteFile, ...]:
    """Fetch the files that are not in the cache, several at once, and return all that were asked for.

    A file that changed since it was listed is listed again, once.
    """
    num_bytes = sum(file.num_bytes or 0 for file in missing)
    _check_room(missing, source=source)
    what = f"{len(missing)} {'file' if len(missing) == 1 else 'files'} of {redacted(source.address)}"
    if num_bytes >= _LONG_BYTES:
        _logger.info("%s: fetching %s, %.1f MiB, into %s", source.key, what, num_bytes / 2**20, source.folder)
    work, store = ByteWork(f"fetching {what}", num_bytes=num_bytes or None), open_store(source.address, key=source.key)
    with shown_while(work), ThreadPoolExecutor(max_workers=_NUM_THREADS) as pool:
        fetches = [pool.submit(_fetch_one, file, store=store, source=source, work=work) for file in missing]
        try:
            wait(fetches, return_when=FIRST_EXCEPTION)
            for done in filter(Future.done, fetches):
                done.result()  # raises the error that ended the wait
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
    _record_changes(fetched, files, source=source)
    return tuple(fetched.get(file.address, file) for file in files)


def _fetch_one(file: RemoteFile, *, store: Store, source: RemoteSource, work: ByteWork) -> RemoteFile:
    """Fetch a file, once more if it changes meanwhile, and return it as it was fetched."""
    try:
        try:
            fetch(file, store=store, folder=source.folder, work=work)
        except RemoteChangedError:
            text = "%s: %s changed while it was fetched; fetching it again"
            _logger.warning(text, source.key, redacted(file.address))
            file = with_retries(lambda: store.info(file.address), address=file.address)
            fetch(file, store=store, folder=source.folder, work=work)
    except RemoteError as error:
        error.address = redacted(file.address)
        raise
    except OSError as error:
        raise ValueError(
            f"{source.key}: {redacted(file.address)} cannot be written into {source.folder} "
            f"({error.strerror or error}); make room there, or set data.cache_dir"
        ) from error
    return file


def _record_changes(fetched: Mapping[str, RemoteFile], files: Sequence[RemoteFile], *, source: RemoteSource) -> None:
    """Record the versions that were fetched, of files that changed since they were listed."""
    place = (source.cache_dir, source.address)
    listed = _checked[place][1] if place in _checked else read_record(source) or files
    all_files = tuple(fetched.get(file.address, file) for file in listed)
    write_record(all_files, source=source)
    _checked[place] = (time.monotonic(), all_files)


def _check_room(missing: Sequence[RemoteFile], *, source: RemoteSource) -> None:
    """Raise ValueError if the files do not fit; what another process, or an earlier one, has stored of them counts."""
    source.folder.mkdir(parents=True, exist_ok=True)
    num_bytes = 0
    for file in missing:
        num_arrived = num_bytes_arrived(cached_path(file, folder=source.folder))  # first: it may end meanwhile
        if not is_cached(file, folder=source.folder):
            num_bytes += max((file.num_bytes or 0) - num_arrived, 0)
    free = shutil.disk_usage(source.folder).free
    if num_bytes > free:
        raise ValueError(
            f"{source.key}: {redacted(source.address)} needs {num_bytes / 2**30:.1f} GiB, {source.folder} has "
            f"{free / 2**30:.1f} GiB free; make room, or set data.cache_dir"
        )


def _warn_of_weak_checks(files: Sequence[RemoteFile], *, source: RemoteSource) -> None:
    unknown = [file for file in files if file.version is None]
    if unknown:
        warn_once(
            f"{source.key}: the server of {redacted(unknown[0].address)} states neither an ETag nor a time, so a "
            "change that keeps the size is not noticed; delete the cache after one"
        )
