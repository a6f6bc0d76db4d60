"""List and read remote files: by fsspec for stores that list their files, by HTTP for single addresses.

A store answers three questions: what is at an address, which files are below it or match it, and the bytes of a file
from a given one on. Its errors are those of `errors.py`.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import fsspec

from versatune_ds.data.remote.addresses import check_address, scheme_of
from versatune_ds.data.remote.errors import RemoteMissingError, remote_errors
from versatune_ds.data.remote.http_store import HttpStore
from versatune_ds.data.remote.remote_file import RemoteFile

BLOCK_BYTES = 8 << 20
"""Bytes of one request; one that fails is repeated alone."""

_CONTENT_FIELDS = ("ETag", "etag", "md5Hash", "crc32c", "xet_hash", "blob_id")
"""Fields that change with the content, the first one present is used; `info` and listings of a store share them."""
_TIME_FIELDS = ("LastModified", "last_modified", "updated", "mtime", "modified", "created")


class Store(Protocol):
    """Where remote files lie."""

    def info(self, address: str) -> RemoteFile:
        """Return what is at an address: a file or a folder."""

    def below(self, address: str) -> list[RemoteFile]:
        """Return the files below a folder."""

    def matching(self, pattern: str) -> list[RemoteFile]:
        """Return the files and folders that match a pattern."""

    def read(self, file: RemoteFile, *, start: int) -> tuple[int, Iterator[bytes]]:
        """Return the byte at which reading begins, `start` or 0 where it cannot begin there, and blocks of bytes."""


def open_store(address: str, *, key: str) -> Store:
    """Return the store of an address.

    Raises:
        ValueError: If its scheme is unknown, or needs a package that is not installed.
    """
    scheme, name = check_address(address, key=key), scheme_of(address)
    if not scheme.can_list:
        return HttpStore(block_bytes=BLOCK_BYTES)
    try:
        filesystem = fsspec.filesystem(name)
    except ImportError:
        package = scheme.package or "huggingface_hub"
        raise ValueError(f"{key}: {name}:// needs the package {package}; pip install {package}") from None
    return FsspecStore(filesystem, scheme=name)


@dataclass(frozen=True, slots=True)
class FsspecStore:
    """Files of a file system of fsspec."""

    filesystem: Any
    scheme: str

    def info(self, address: str) -> RemoteFile:
        """Return what is at an address, uncached."""
        with remote_errors():
            self.filesystem.invalidate_cache()
            return self._file(self.filesystem.info(address))

    def below(self, address: str) -> list[RemoteFile]:
        """Return the files below a folder."""
        with remote_errors():
            self.filesystem.invalidate_cache()
            found = self.filesystem.find(address, detail=True).values()
            # Consoles of S3 make an empty file `law/` to show a folder.
            return [self._file(info) for info in found if not str(info["name"]).endswith("/")]

    def matching(self, pattern: str) -> list[RemoteFile]:
        """Return the files and folders that match a pattern."""
        with remote_errors():
            self.filesystem.invalidate_cache()
            return [self._file(info) for info in self.filesystem.glob(pattern, detail=True).values()]

    def read(self, file: RemoteFile, *, start: int) -> tuple[int, Iterator[bytes]]:
        """Return `start`, and blocks of bytes from there on."""
        return start, self._blocks(file, start=start)

    def _blocks(self, file: RemoteFile, *, start: int) -> Iterator[bytes]:
        with remote_errors(), self.filesystem.open(file.address, "rb", block_size=BLOCK_BYTES) as stream:
            stream.seek(start)
            while block := stream.read(BLOCK_BYTES):
                yield block

    def _file(self, info: Mapping[str, Any]) -> RemoteFile:
        """Return an entry of fsspec as a file or folder."""
        if info.get("type") not in ("file", "directory"):
            raise RemoteMissingError(f"neither a file nor a folder but {info.get('type')!r}")
        return RemoteFile(
            address=f"{self.scheme}://{str(info['name']).removeprefix(f'{self.scheme}://')}",
            num_bytes=info.get("size"),
            version=_version(info),
            is_folder=info["type"] == "directory",
        )


def _version(info: Mapping[str, Any]) -> str | None:
    """Return what changes with a file's content: a digest that the store computed, else its time; None for neither."""
    for name in (*_CONTENT_FIELDS, *_TIME_FIELDS):
        value = info.get(name)
        if isinstance(value, datetime.datetime):
            value = value.timestamp()  # listings of some stores have it in this form
        if value is not None:
            return f"{name.lower()}={json.dumps(value, default=str)}"
    return None
