"""Classify why a remote file cannot be read: it is missing, access is denied, or the server cannot be reached.

Every library raises errors of its own; here they become one of three. Errors of our own code stay what they are: they
are neither retried nor taken for a missing network.
"""

from __future__ import annotations

import contextlib
import re
import socket
import urllib.error
from collections.abc import Iterator
from http.client import HTTPException

from versatune_ds.data.remote.addresses import without_secrets
from versatune_ds.log import first_line

_MISSING_STATUS = (404, 410)
_DENIED_STATUS = (401, 403)
_LIBRARIES = frozenset(
    (
        *("aiobotocore", "aiohttp", "asyncio", "botocore", "fsspec", "gcsfs", "google"),
        *("httpcore", "httpx", "huggingface_hub", "requests", "s3fs", "urllib3"),
    )
)
"""Libraries, beside Python's own for HTTP, whose errors are those of a store."""
_UNKNOWN_HOST = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
"""Not EAI_AGAIN, with which name servers that cannot be reached are reported."""
_QUERY = re.compile(r"(?<=[^\s?])\?[^\s'\"<>?][^\s'\"<>]*")
"""The query of an address or of a path without its server, which libraries print too."""


class RemoteError(Exception):
    """A remote file or folder cannot be read; the text is the reason, without the address."""

    address: str | None = None
    """Which file it is about, where a source has several."""


class RemoteMissingError(RemoteError):
    """There is no such file or folder."""


class RemoteDeniedError(RemoteError):
    """Access is denied, or there are no credentials."""


class RemoteUnreachableError(RemoteError):
    """The server does not answer, or its answer broke off: it may work again later, or there is no network."""


class RemoteRefusedError(RemoteUnreachableError):
    """Nothing answers at the server's port: the address is wrong, or the server is not running."""


class RemoteUnknownHostError(RemoteUnreachableError):
    """No server has this name, as far as the network's name servers know."""


class RemoteChangedError(RemoteError):
    """The file changed while it was fetched."""


@contextlib.contextmanager
def remote_errors() -> Iterator[None]:
    """Turn what a library or the network raises within a block into one of the errors above."""
    try:
        yield
    except RemoteError:
        raise
    except Exception as error:  # botocore, gcsfs, huggingface_hub, urllib and the network raise different ones
        kind = _kind_of(error)
        if kind is None:
            raise
        raise kind(_reason(error)) from error


def _kind_of(error: Exception) -> type[RemoteError] | None:
    """Return the class of an error; None for one that is no store's, such as a mistake in our own code."""
    status = status_of(error)
    if isinstance(error, FileNotFoundError) or status in _MISSING_STATUS:
        return RemoteMissingError
    if isinstance(error, PermissionError) or status in _DENIED_STATUS or "Credentials" in type(error).__name__:
        return RemoteDeniedError
    cause = error.reason if isinstance(error, urllib.error.URLError) else None
    if isinstance(cause, ConnectionRefusedError):
        return RemoteRefusedError
    if isinstance(cause, socket.gaierror) and cause.errno in _UNKNOWN_HOST:
        return RemoteUnknownHostError
    is_of_library = type(error).__module__.partition(".")[0] in _LIBRARIES
    is_known = status is not None or is_of_library or isinstance(error, (OSError, HTTPException))
    return RemoteUnreachableError if is_known else None


def _reason(error: Exception) -> str:
    status = status_of(error)
    cause = getattr(
        error, "reason", None
    )  # of urllib: "<urlopen error [Errno 111] Connection refused>" without its frame
    text = " ".join(str(cause if status is None and cause else first_line(error)).split())
    text = _QUERY.sub("", without_secrets(text))
    return text if status is None or str(status) in text else f"{status} {text}"


def status_of(error: Exception) -> int | None:
    """Return the HTTP status of an error, None where it has none."""
    for holder in (error, getattr(error, "response", None)):
        for name in ("status_code", "status", "code"):
            status = getattr(holder, name, None)
            if isinstance(status, int) and 100 <= status < 600:
                return status
    return None
