"""Define the schemes of addresses of data files: what each needs installed, and which credentials it uses."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import quote, unquote, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

from versatune_ds.domains import nearest_name

_MAX_NAME_BYTES = 200
_HTTP_PASSWORD = re.compile(r"(https?://)[^/\s@'\"]*@", re.IGNORECASE)
_HTTP_QUERY = re.compile(r"(https?://[^\s'\"<>?#]*)[?#][^\s'\"<>]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """One kind of address."""

    package: str | None = None
    """What to install to read it; None where this package already needs it."""
    credentials: str
    """What a refused access is answered with: where credentials are looked for."""
    can_list: bool = True
    """Whether folders and patterns can be listed."""


SCHEMES = {
    "s3": Scheme(
        package="s3fs",
        credentials="credentials are read from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for a "
        "public bucket set FSSPEC_S3_ANON=true",
    ),
    "gs": Scheme(
        package="gcsfs",
        credentials="credentials are read from GOOGLE_APPLICATION_CREDENTIALS, or from the login of gcloud; for a "
        "public bucket set FSSPEC_GS_TOKEN=anon",
    ),
    "hf": Scheme(credentials="the token is read from HF_TOKEN, or from the login of `hf auth login`"),
    "https": Scheme(
        credentials="no credentials are sent for https://; use a signed address, or s3://, gs:// or hf://",
        can_list=False,
    ),
    "http": Scheme(credentials="no credentials are sent for http://", can_list=False),
    "memory": Scheme(credentials="files in this process's memory need none"),
}


def scheme_of(address: str) -> str:
    """Return the scheme of an address, in lower case."""
    return address.partition("://")[0].lower()


def with_lower_scheme(address: str) -> str:
    """Return an address with its scheme in lower case, as fsspec expects it."""
    return "://".join((scheme_of(address), address.partition("://")[2]))


def store_of(address: str) -> str:
    """Return what answers for an address: its scheme, and the server or bucket."""
    return "://".join((scheme_of(address), address.partition("://")[2].partition("/")[0]))


def host_and_port(address: str) -> tuple[str, int]:
    """Return the server of an address of http, and the port that is asked there."""
    parts = urlsplit(address)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def is_proxied(address: str) -> bool:
    """Return whether an address of http is asked through a proxy: then an error may be the proxy's."""
    parts = urlsplit(address)
    return parts.scheme in getproxies() and not proxy_bypass(parts.netloc)


def check_address(address: str, *, key: str) -> Scheme:
    """Return what is known of an address's scheme.

    Raises:
        ValueError: If the scheme is unknown, or the address contains a password.
    """
    name = scheme_of(address)
    if name == "file":
        raise ValueError(f"{key}: {address}: write a file of this machine as a path, without file://")
    if name not in SCHEMES:
        raise ValueError(f"{key}: {redacted(address)}: unknown scheme; {nearest_name(name, SCHEMES)}")
    if "@" in urlsplit(address).netloc and name in ("http", "https"):
        raise ValueError(
            f"{key}: {redacted(address)}: a password in an address would be written into the run's files; leave it out"
        )
    return SCHEMES[name]


def redacted(address: str) -> str:
    """Return an address for messages: of http, without a query or a password, which may be secret."""
    if scheme_of(address) not in ("http", "https"):
        return address
    parts = urlsplit(address)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def without_secrets(text: str) -> str:
    """Return a text, such as a message or a recipe, with the addresses of http in it redacted."""
    return _HTTP_QUERY.sub(r"\1", _HTTP_PASSWORD.sub(r"\1", text))


def quoted(address: str) -> str:
    """Return an address of http with spaces and other characters that may not be in a request percent-encoded.

    Raises:
        UnicodeError: If the server's name cannot be encoded.
    """
    parts = urlsplit(address)
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    path, query = (quote(part, safe="/%:@!$&'()*+,;=~[]?") for part in (parts.path, parts.query))
    return urlunsplit((parts.scheme, host, path, query, ""))


def file_name(address: str) -> str:
    """Return the name under which the file of an address is cached: its own, because it decides the format."""
    is_http = scheme_of(address) in ("http", "https")
    path = unquote(urlsplit(address).path) if is_http else address.partition("://")[2]
    name = re.sub(r"[\x00-\x1f/]", "_", PurePosixPath(path).name) or "file"
    kept = name.encode()[-_MAX_NAME_BYTES:].decode(errors="ignore")  # the end, which has the suffixes
    return kept if kept not in (".", "..") else "file"
