"""Tell apart why a remote file cannot be read: it is missing, access is denied, or the other side cannot be reached.

Every library raises errors of its own; here they become one of three.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from versatune_ds.log import first_line

_MISSING_STATUS = (404, 410)
_DENIED_STATUS = (401, 403)


class RemoteError(Exception):
    """A remote file or folder cannot be read; the text is the reason, without the address."""

    address: str | None = None
    """Which file it is about, where a source has several."""


class RemoteMissingError(RemoteError):
    """There is no such file or folder."""


class RemoteDeniedError(RemoteError):
    """Access is denied, or there are no credentials."""


class RemoteUnreachableError(RemoteError):
    """The other side does not answer, or its answer broke off: it may work again later, or there is no network."""


class RemoteChangedError(RemoteError):
    """The file changed while it was fetched."""


@contextlib.contextmanager
def remote_errors() -> Iterator[None]:
    """Turn whatever a library raises within a block into one of the errors above."""
    try:
        yield
    except RemoteError:
        raise
    except Exception as error:  # botocore, gcsfs, huggingface_hub, urllib and the network raise different ones
        raise _kind_of(error)(_reason(error)) from error


def _kind_of(error: Exception) -> type[RemoteError]:
    status = status_of(error)
    if isinstance(error, FileNotFoundError) or status in _MISSING_STATUS:
        return RemoteMissingError
    if isinstance(error, PermissionError) or status in _DENIED_STATUS or "Credentials" in type(error).__name__:
        return RemoteDeniedError
    return RemoteUnreachableError


def _reason(error: Exception) -> str:
    status = status_of(error)
    cause = getattr(
        error, "reason", None
    )  # of urllib: "<urlopen error [Errno 111] Connection refused>" without its frame
    text = " ".join(str(cause if status is None and cause else first_line(error)).split())
    return text if status is None or str(status) in text else f"{status} {text}"


def status_of(error: Exception) -> int | None:
    """Return the HTTP status of an error, None where it has none."""
    for holder in (error, getattr(error, "response", None)):
        for name in ("status_code", "status", "code"):
            status = getattr(holder, name, None)
            if isinstance(status, int) and 100 <= status < 600:
                return status
    return None
