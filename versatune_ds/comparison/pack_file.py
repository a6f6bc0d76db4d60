"""Make and read the archive that carries results: a .tar.gz of JSON texts, with the sum of each.

Equal results make equal bytes. An archive is read into memory; nothing is unpacked to a path that it names.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

FORMAT = 1
CONTENT_FILE = "content.json"
_MAX_BYTES = 1 << 29
"""Of all files together, unpacked."""
_MAX_FILES = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """A file of results, read and checked."""

    path: Path
    files: Mapping[str, bytes]
    content: Mapping[str, Any]
    """`base_model`: the digest of its files; `settings`: name of a run, `base` or `stages` to what it was made with."""


def archive_of(files: Mapping[str, bytes]) -> bytes:
    """Return a .tar.gz without times, owners or an order of their own: the same files make the same bytes."""
    archive = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=archive, mode="wb", filename="", mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in sorted(files):
            entry = tarfile.TarInfo(name)
            entry.size = len(files[name])
            tar.addfile(entry, io.BytesIO(files[name]))
    return archive.getvalue()


def read_pack(path: Path) -> Pack:
    """Read a file of results into memory, and check it.

    Raises:
        ValueError: If it is missing, no such file, damaged, too large, or has a path that leaves its folder.
    """
    if not path.is_file():
        raise ValueError(f"--continue: {path}: no such file; expected one that `versatune compare --pack` wrote")
    try:
        files = _entries(path)
        content = json.loads(files.pop(CONTENT_FILE))
        sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    except (OSError, EOFError, tarfile.TarError, KeyError, json.JSONDecodeError):
        raise ValueError(f"--continue: {path}: damaged, or not written by `versatune compare --pack`") from None
    if content.get("format") != FORMAT:
        raise ValueError(f"--continue: {path}: format {content.get('format')}; this version reads format {FORMAT}")
    if sums != content["sha256"]:
        raise ValueError(f"--continue: {path}: damaged: its files are not those it lists; copy it again")
    return Pack(path=path, files=files, content=content)


def _entries(path: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    num_bytes = 0
    with tarfile.open(path, mode="r|gz") as tar:
        for entry in tar:
            name = PurePosixPath(entry.name)
            if not entry.isfile() or name.is_absolute() or ".." in name.parts:
                raise ValueError(f"--continue: {path}: {entry.name!r}: expected plain files below it; not read")
            num_bytes += entry.size
            if num_bytes > _MAX_BYTES or len(files) >= _MAX_FILES:
                raise ValueError(f"--continue: {path}: more than {_MAX_BYTES >> 20} MiB of results; not read")
            stream = tar.extractfile(entry)
            assert stream is not None, "a plain file"
            files[entry.name] = stream.read()
    return files
