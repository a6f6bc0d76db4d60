"""Describe a remote file without reading it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from versatune_ds.data.remote.addresses import file_name


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file, or a folder, at an address."""

    address: str
    num_bytes: int | None = None
    """Its size; None where the store does not state it."""
    version: str | None = None
    """What changes with its content, such as an ETag or a time; None where the store states neither."""
    is_folder: bool = False

    @property
    def name(self) -> str:
        """Return the file's name."""
        return file_name(self.address)

    @property
    def path(self) -> PurePosixPath:
        """Return the address as a path; sorted by it, files have the order that they would have on disk."""
        return PurePosixPath(self.address.partition("://")[2])
