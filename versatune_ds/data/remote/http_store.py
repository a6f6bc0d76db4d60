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

from versatune_ds.data.remote.addresses import file_name, quoted
from versatune_ds.data.remote.errors import (
    RemoteChangedError,
    RemoteError,
    RemoteMissingError,
    RemoteUnreachableError,
    remote_errors,
)
from versatune_ds.data.remote.remote_file import RemoteFile

_TIMEOUT_SECONDS = 60.0
_EMPTY_RANGE, _PARTIAL = 416, 206
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


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
            _check_is_plain(headers, address=address)
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
            RemoteError: If it is not the part that was asked for, or its end cannot be recognised.
        """
        start = 0 if file.num_bytes is None else start  # where the size is not known, a part may end too early
        with remote_errors():
            if file.num_bytes == 0:
                return 0, (block for block in ())
            response = _open(file.address, {"Range": f"bytes={start}-"} if start else {})
            try:
                if _version(response.headers) != file.version:
                    raise RemoteChangedError("it changed while it was fetched")
                _check_is_plain(response.headers, address=file.address)
                num_bytes = _length(response)
                first = _first_byte(response, file=file, start=start)
            except BaseException:
                response.close()
                raise
            return first, self._blocks(response, first=first, num_bytes=num_bytes)

    def _blocks(self, response: HTTPResponse, *, first: int, num_bytes: int | None) -> Iterator[bytes]:
        """Yield an answer's blocks; raise if it ends before the number of bytes that it stated."""
        num_read = 0
        with remote_errors(), response:
            while block := response.read(self.block_bytes):
                num_read += len(block)
                yield block
        if num_bytes is not None and num_read < num_bytes:
            ended, expected = first + num_read, first + num_bytes
            raise RemoteUnreachableError(f"the connection ended after {ended:,} of {expected:,} bytes")


def _open(address: str, headers: dict[str, str]) -> HTTPResponse:
    # Without compression: of compressed answers, neither size nor place would be those of the file.
    try:
        url = quoted(address)
    except UnicodeError:
        raise RemoteError("the server's name has characters that no name may have") from None
    request = urllib.request.Request(url, headers={"Accept-Encoding": "identity", **headers})
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


def _check_is_plain(headers: email.message.Message, *, address: str) -> None:
    """Raise RemoteError if an answer is compressed on its way: its bytes would not be those of the file."""
    encoding = headers.get("Content-Encoding", "identity").strip().lower() or "identity"
    is_of_file = encoding in ("gzip", "x-gzip") and file_name(address).lower().endswith(".gz")
    if encoding != "identity" and not is_of_file:
        raise RemoteError(f"the server sends it compressed (Content-Encoding: {encoding}), although asked not to")


def _length(response: HTTPResponse) -> int | None:
    """Return the number of bytes that an answer states; None for one sent in chunks, whose end is marked.

    Raises:
        RemoteError: If a broken answer could not be told from a complete one.
    """
    length = response.headers.get("Content-Length", "")
    if length.isdigit() and not response.chunked:
        return int(length)
    if not response.chunked:
        raise RemoteError("the server does not state the file's size, so a broken download would look complete")
    return None


def _first_byte(response: HTTPResponse, *, file: RemoteFile, start: int) -> int:
    """Return the byte at which an answer begins: `Content-Range: bytes 500-1233/1234` begins at byte 500.

    Raises:
        RemoteChangedError: If the answer states another size of the file.
        RemoteError: If it begins at another byte than was asked for, or does not state at which.
    """
    if response.status != _PARTIAL:
        return 0
    stated = response.headers.get("Content-Range", "")
    match = _RANGE.fullmatch(stated.strip())
    if match is None or int(match[1]) != start:
        raise RemoteError(f"the server answered with another part of it ({stated or 'none stated'}) than from {start}")
    if match[2] != "*" and file.num_bytes not in (None, int(match[2])):
        raise RemoteChangedError("it changed while it was fetched")
    return start
