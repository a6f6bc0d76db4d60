"""Read a data file as UTF-8 lines, and represent one record of it.

Byte order marks, Windows line ends, blank lines and compression are handled here and nowhere else.
"""

from __future__ import annotations

import gzip
import io
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

COMPRESSIONS = (".gz", ".zst")
_WRONG_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_UNREADABLE = "\0unreadable"
_UTF8_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One record of a file."""

    line: int
    """Line from 1; row number in Parquet and Arrow, entry number in a `.json` object."""
    json_text: str
    problem: str = ""
    """Why it cannot be read; empty when it can."""


def json_text(value: Any) -> str:
    """Return a value as ASCII JSON text; values that JSON does not have (dates) are written as text."""
    return json.dumps(value, default=str)


def parse_json(text: str) -> Any:
    """Return the value of a JSON text; NaN and infinities become None, as in a table.

    Raises:
        json.JSONDecodeError: If it is not JSON.
        RecursionError: If it is nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=lambda _: None, parse_float=_finite)
    except json.JSONDecodeError:
        raise
    except ValueError:  # Python refuses to convert integers of more than 4300 digits
        return json.loads(text, parse_constant=lambda _: None, parse_float=_finite, parse_int=_short)


def _finite(text: str) -> float | None:
    """Return a number of a JSON text; 1e999, which overflows a float, becomes None like infinity."""
    number = float(text)
    return number if math.isfinite(number) else None


def _short(text: str) -> int | dict[str, str]:
    """Return a whole number of a JSON text, or a marker if it has too many digits for Python."""
    try:
        return int(text)
    except ValueError:
        return unreadable("contains a number with too many digits; write it as text")


def plain_value(value: Any) -> Any:
    """Return a value of a table with binary decoded as UTF-8 and NaN, pandas' missing value, as None.

    Binary that is not text (an image) becomes a marker: it makes a row bad only if its form reads it.
    """
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            return unreadable(f"not UTF-8 text ({error.reason} at byte {error.start + 1})")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: plain_value(entry) for key, entry in value.items()}
    return [plain_value(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def unreadable(reason: str) -> dict[str, str]:
    """Return a marker for a value that cannot be read; it does no harm in a column that is not used."""
    return {_UNREADABLE: reason}


def why_unreadable(value: Any) -> str:
    """Return why a value of a record cannot be read; empty if it can."""
    return value.get(_UNREADABLE, "") if isinstance(value, dict) else ""


def texts_in(value: Any, *, with_keys: bool = False) -> list[str]:
    """Return all texts in a JSON-like value, at any depth; not the reasons of values that cannot be read."""
    found, pending = [], [value]
    while pending:
        entry = pending.pop()
        if isinstance(entry, str):
            found.append(entry)
        elif isinstance(entry, dict) and not why_unreadable(entry):
            pending += [*entry.keys(), *entry.values()] if with_keys else entry.values()
        elif isinstance(entry, (list, tuple)):
            pending += entry
    return found


def printable(text: str, *, max_characters: int | None = None) -> str:
    """Return a text from a data file, safe for a terminal and not too long."""
    shown = text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
    return shown if len(shown) <= (max_characters or len(shown)) else shown[:max_characters] + "..."


def open_bytes(path: Path) -> BinaryIO:
    """Open a file, decompress it, and skip a UTF-8 byte order mark.

    Raises:
        ValueError: If the file is UTF-16.
    """
    suffix = path.suffix.lower()
    if suffix == ".gz":
        stream = io.BufferedReader(gzip.GzipFile(path))
    elif suffix == ".zst":
        stream = io.BufferedReader(pa.input_stream(str(path), compression="zstd"))
    else:
        stream = path.open("rb")
    head = stream.peek(len(_UTF8_BOM))
    if head[:2] in _WRONG_BOMS:
        raise ValueError(f"{path}: encoded as {_WRONG_BOMS[head[:2]]}; convert it to UTF-8")
    if head.startswith(_UTF8_BOM):
        stream.read(len(_UTF8_BOM))
    return stream


def open_text(path: Path) -> io.TextIOWrapper:
    """Open a file as UTF-8 text with unchanged line ends."""
    return io.TextIOWrapper(open_bytes(path), encoding="utf-8", newline="")


def read_lines(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield (line, text, problem) of every line that is not blank; the text keeps its indentation."""
    with open_bytes(path) as stream:
        yield from numbered_lines(stream, first=1)


def numbered_lines(lines: Iterable[bytes], *, first: int) -> Iterator[tuple[int, str, str]]:
    """Yield (line, text, problem) of successive lines that are not blank; the first one has the number `first`."""
    for number, line in enumerate(lines, start=first):
        if not line.strip():
            continue
        try:
            yield number, line.rstrip(b"\r\n").decode("utf-8"), ""
        except UnicodeDecodeError as error:
            yield number, "", f"not UTF-8 text ({error.reason} at byte {error.start + 1})"
