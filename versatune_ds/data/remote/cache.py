"""Return the files of an address as files on disk: fetch those that are new or changed, keep the others.

What a source's files were is recorded when they are listed, so that a run also starts where the other side cannot be
reached and everything was fetched before; that is logged. The first process of a node asks the other side, at most once
a minute; the processes beside it take what that one found, and so have the same files.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from versatune_ds.data.remote.addresses import SCHEMES, scheme_of, shown
from versatune_ds.data.remote.errors import (
    RemoteChangedError,
    RemoteDeniedError,
    RemoteError,
    RemoteMissingError,
    RemoteUnreachableError,
)
from versatune_ds.data.remote.fetch import cached_path, digits_of, fetch, is_cached
from versatune_ds.data.remote.listing import list_files
from versatune_ds.data.remote.remote_file import RemoteFile
from versatune_ds.data.remote.retries import PAUSES_SECONDS, with_retries
from versatune_ds.data.remote.stores import Store, open_store
from versatune_ds.data.sources.missing_data import MissingDataError
from versatune_ds.distributed.world import discover_world
from versatune_ds.log import warn_once
from versatune_ds.progress import ByteWork, shown_while
from versatune_ds.run_folder.atomic import write_json

_logger = logging.getLogger(__name__)

_NUM_THREADS = 4
_CHECK_SECONDS = 60.0
"""How long a process relies on what it found; a process of a run never asks twice."""
_checked: dict[tuple[Path | None, str], tuple[float, tuple[RemoteFile, ...]]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteSource:
    """A source of a recipe that is an address, and the cache that it is fetched into."""

    address: str
    key: str
    """Dotted key of the recipe, with which every message begins."""
    cache_dir: Path | None
    """None where its files are only listed, and the list is not recorded."""

    @property
    def folder(self) -> Path:
        """Return the folder of all fetched files."""
        assert self.cache_dir is not None, "files are fetched into a cache"
        return self.cache_dir / "remote"

    @property
    def record(self) -> Path:
        """Return the file that records what the source's files were."""
        return self.folder / f"{digits_of(self.address)}.json"


def forget_checks() -> None:
    """Ask the other side again at the next use, whatever was found before."""
    _checked.clear()


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
    recorded = _recorded(source)
    if world.local_rank > 0 and recorded and all(is_cached(file, folder=source.folder) for file in recorded):
        return recorded
    files = _list(source, recorded=recorded)
    _checked[place] = (time.monotonic(), files)
    return files


def fetch_files(source: RemoteSource) -> list[Path]:
    """Return the files of a source as files on disk, in their order.

    Raises:
        ValueError: If they cannot be listed or fetched, or the disk is too small.
    """
    files = remote_files(source)
    missing = [file for file in files if not is_cached(file, folder=source.folder)]
    if missing:
        files = _fetch_missing(files, missing, source=source)
    return [cached_path(file, folder=source.folder) for file in files]


def _list(source: RemoteSource, *, recorded: tuple[RemoteFile, ...] | None) -> tuple[RemoteFile, ...]:
    """Ask which files there are; where nobody answers, return the recorded ones if all of them were fetched."""
    store = open_store(source.address, key=source.key)
    pauses = PAUSES_SECONDS[:1] if recorded else PAUSES_SECONDS
    try:
        files = tuple(
            with_retries(
                lambda: list_files(source.address, store=store, key=source.key),
                address=source.address,
                pauses_seconds=pauses,
            )
        )
    except RemoteUnreachableError as error:
        if not recorded or not all(is_cached(file, folder=source.folder) for file in recorded):
            raise _described(error, source=source) from error
        warn_once(
            f"{source.key}: {shown(source.address)} cannot be reached ({error}), so whether it changed is not known; "
            "the files fetched before are used"
        )
        return recorded
    except RemoteError as error:
        raise _described(error, source=source) from error
    _warn_of_weak_checks(files, source=source)
    _write_record(files, source=source)
    return files


def _fetch_missing(
    files: Sequence[RemoteFile], missing: Sequence[RemoteFile], *, source: RemoteSource
) -> tuple[RemoteFile, ...]:
    """Fetch the files that are not in the cache, several at once, and return all files of the source.

    A file that changed since it was listed is listed again, once.
    """
    num_bytes = sum(file.num_bytes or 0 for file in missing)
    _check_room(num_bytes, source=source)
    what = f"{len(missing)} {'file' if len(missing) == 1 else 'files'} of {shown(source.address)}"
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
                raise _described(error, source=source) from error
            raise
    seconds = max(time.monotonic() - work.started, 1e-9)
    rate = work.num_done / 2**20 / seconds
    _logger.info("%s: fetched %s in %.1f s, %.1f MiB/s", source.key, what, seconds, rate)
    files = tuple(fetched.get(file.address, file) for file in files)
    _write_record(files, source=source)
    _checked[source.cache_dir, source.address] = (time.monotonic(), files)
    return files


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


def _described(error: RemoteError, *, source: RemoteSource) -> ValueError:
    """Return a user's error: what is wrong at which address, and what to do."""
    place = error.address or shown(source.address)
    if isinstance(error, RemoteMissingError):
        hint = "; a private one is found with a token only" if scheme_of(source.address) == "hf" else ""
        return MissingDataError(f"{source.key}: no such file or folder: {place}; correct the address{hint}")
    if isinstance(error, RemoteDeniedError):
        todo = SCHEMES[scheme_of(source.address)].credentials
        return ValueError(f"{source.key}: {place}: access denied ({error}); {todo}")
    if isinstance(error, RemoteUnreachableError):
        return ValueError(f"{source.key}: {place} cannot be read ({error}); check the network, then start again")
    return ValueError(f"{source.key}: {place}: {error}; download it, and give the path of the file")


def _recorded(source: RemoteSource) -> tuple[RemoteFile, ...] | None:
    """Return what a source's files were when they were last listed; None if they never were."""
    if source.cache_dir is None:
        return None
    try:
        entries = json.loads(source.record.read_text(encoding="utf-8"))["files"]
        files = tuple(RemoteFile(**entry) for entry in entries)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    is_one = scheme_of(source.address) in ("http", "https")
    return (dataclasses.replace(files[0], address=source.address),) if is_one and files else files


def _write_record(files: Sequence[RemoteFile], *, source: RemoteSource) -> None:
    """Record a source's files; addresses of http without a query, which may be secret."""
    if source.cache_dir is None:
        return
    entries = [{**dataclasses.asdict(file), "address": shown(file.address)} for file in files]
    source.folder.mkdir(parents=True, exist_ok=True)
    write_json(source.record, {"address": shown(source.address), "files": entries})
