"""A source of a recipe that is an address: the record of its files, and errors about it in the user's terms."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from versatune_ds.data.remote.addresses import (
    SCHEMES,
    host_and_port,
    is_proxied,
    redacted,
    scheme_of,
    with_lower_scheme,
)
from versatune_ds.data.remote.errors import (
    RemoteDeniedError,
    RemoteError,
    RemoteMissingError,
    RemoteRefusedError,
    RemoteUnknownHostError,
    RemoteUnreachableError,
)
from versatune_ds.data.remote.fetch import short_digest
from versatune_ds.data.remote.remote_file import RemoteFile
from versatune_ds.data.sources.missing_data import MissingDataError
from versatune_ds.run_folder.atomic import write_json


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteSource:
    """A source of a recipe that is an address, and the cache that it is fetched into."""

    address: str
    key: str
    """Dotted key of the recipe, with which every message begins."""
    cache_dir: Path | None
    """None where its files are only listed, and the list is not recorded."""
    is_split: bool = False
    """Whether it is a split of `data.folder`, which may be missing: then it has no files, and that is recorded too."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "address", with_lower_scheme(self.address))

    @property
    def folder(self) -> Path:
        """Return the folder of all fetched files."""
        assert self.cache_dir is not None, "files are fetched into a cache"
        return self.cache_dir / "remote"

    @property
    def record(self) -> Path:
        """Return the file that records what the source's files were."""
        return self.folder / f"{short_digest(self.address)}.json"


def read_record(source: RemoteSource) -> tuple[RemoteFile, ...] | None:
    """Return what a source's files were when they were last listed; None if they never were."""
    if source.cache_dir is None:
        return None
    try:
        entries = json.loads(source.record.read_text(encoding="utf-8"))["files"]
        files = tuple(RemoteFile(**entry) for entry in entries)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if not files and not source.is_split:
        return None
    is_one = scheme_of(source.address) in ("http", "https")
    return (dataclasses.replace(files[0], address=source.address),) if is_one and files else files


def is_recorded_since(seconds: float, *, source: RemoteSource) -> bool:
    """Return whether a source's files were recorded after a time (seconds since 1970)."""
    try:
        return source.cache_dir is not None and source.record.stat().st_mtime >= seconds
    except OSError:
        return False


def write_record(files: Sequence[RemoteFile], *, source: RemoteSource) -> None:
    """Record a source's files; addresses of http without a query, which may be secret."""
    if source.cache_dir is None:
        return
    entries = [{**dataclasses.asdict(file), "address": redacted(file.address)} for file in files]
    source.folder.mkdir(parents=True, exist_ok=True)
    write_json(source.record, {"address": redacted(source.address), "files": entries})


def user_error(error: RemoteError, *, source: RemoteSource) -> ValueError:
    """Return a user's error: what is wrong at which address, and what to do."""
    address = error.address or redacted(source.address)
    if isinstance(error, RemoteMissingError):
        hint = "; a private one is found with a token only" if scheme_of(source.address) == "hf" else ""
        return MissingDataError(f"{source.key}: no such file or folder: {address}; correct the address{hint}")
    if isinstance(error, RemoteDeniedError):
        todo = SCHEMES[scheme_of(source.address)].credentials
        return ValueError(f"{source.key}: {address}: access denied ({error}); {todo}")
    if isinstance(error, (RemoteRefusedError, RemoteUnknownHostError)) and not is_proxied(address):
        host, port = host_and_port(address)
        if isinstance(error, RemoteRefusedError):
            found, todo = f"nothing answers at host {host}, port {port}", "start the server"
        else:
            found, todo = f"unknown host {host} (port {port})", "check the network, if the name is right"
        return ValueError(f"{source.key}: {address}: {found} ({error}); correct the address, or {todo}")
    if isinstance(error, RemoteUnreachableError):
        return ValueError(f"{source.key}: {address} cannot be read ({error}); check the network, then start again")
    return ValueError(f"{source.key}: {address}: {error}; download it, and give the path of the file")
