"""Read a file from an HTTP server, from any byte on where the server allows it.

The standard library is enough for it; fsspec's own HTTP file system needs aiohttp and hides a server's refusals. What
is at an address is asked with a request for its first byte, because servers of signed addresses refuse HEAD.
"""

from __future__ import annotations

import email.message
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPResponse

from versatune_ds.data.remote.errors import RemoteChangedError, RemoteError, RemoteMissingError, remote_errors
from versatune_ds.data.remote.remote_file import RemoteFile

_TIMEOUT_SECONDS = 60.0
_EMPTY_RANGE, _PARTIAL = 416, 206


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpStore:
    """Single files of HTTP servers; nothing can be listed."""

    block_bytes: int

    def info(self, address: str) -> RemoteFile:
        """Return size and version of a file."""
        with remote_errors():
            try:
                with _open(address, {"Range": "bytes=0-0"}) as response:
                    headers, status = response.headers, response.status
            except urllib.error.HTTPError as error:
                if error.code != _EMPTY_RANGE:
                    raise
                headers, status = error.headers, _PARTIAL  # an empty file has no first byte
            return RemoteFile(address=address, num_bytes=_total(headers, status), version=_version(headers))

    def below(self, address: str) -> list[RemoteFile]:
        """Raise: HTTP has no folders."""
        raise RemoteMissingError("http has no folders")

    def matching(self, pattern: str) -> list[RemoteFile]:
        """Raise: HTTP has no lists of files."""
        raise RemoteMissingError("http cannot list files")

    def read(self, file: RemoteFile, *, start: int) -> tuple[int, Iterator[bytes]]:
        """Return the byte at which the server's answer begins, and its blocks.

        Raises:
            RemoteChangedError: If the answer is of another version of the file.
        """
        with remote_errors():
            if file.num_bytes == 0:
                return 0, (block for block in ())
            response = _open(file.address, {"Range": f"bytes={start}-"} if start else {})
            try:
                if _version(response.headers) != file.version:
                    raise RemoteChangedError("it changed while it was fetched")
                _check_end_is_known(response)
            except BaseException:
                response.close()
                raise
            return (start if response.status == _PARTIAL else 0), self._blocks(response)

    def _blocks(self, response: HTTPResponse) -> Iterator[bytes]:
        with remote_errors(), response:
            while block := response.read(self.block_bytes):
                yield block


def _open(address: str, headers: dict[str, str]) -> HTTPResponse:
    # Without compression: of compressed answers, neither size nor place would be those of the file.
    request = urllib.request.Request(address, headers={"Accept-Encoding": "identity", **headers})
    return urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)


def _total(headers: email.message.Message, status: int) -> int | None:
    """Return the size of a file: of a part, `Content-Range: bytes 0-0/1234` states it."""
    if status == _PARTIAL:
        match = re.search(r"/(\d+)$", headers.get("Content-Range", ""))
        return int(match[1]) if match else None
    length = headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _version(headers: email.message.Message) -> str | None:
    for name in ("ETag", "Last-Modified"):
        if headers.get(name):
            return f"{name.lower()}={headers[name]}"
    return None


def _check_end_is_known(response: HTTPResponse) -> None:
    """Raise RemoteError if a broken answer could not be told from a complete one."""
    if response.headers.get("Content-Length") is None and not response.chunked:
        raise RemoteError("the server does not state the file's size, so a broken download would look complete")
