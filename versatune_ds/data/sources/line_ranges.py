"""Divide a large file of lines at line ends, so that many processes read it at once.

Only the ends of the ranges are looked for here, at about a tenth of the cost of reading the records. What is in the
ranges, one after the other, is what `readers.read_records` yields for the file.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from versatune_ds.data.sources.json_files import records_of_json_lines
from versatune_ds.data.sources.readers import records_of_text_lines
from versatune_ds.data.sources.records import Record, numbered_lines, open_bytes

_READERS = {".jsonl": records_of_json_lines, ".ndjson": records_of_json_lines, ".txt": records_of_text_lines}
MIN_BYTES = 1 << 23
"""Size from which a file is divided."""

_BYTES_PER_READ = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class LineRange:
    """Successive lines of a file."""

    start: int
    """Byte at which the first line begins."""
    end: int
    first_line: int
    """Its number, from 1."""
    num_lines: int
    """Blank lines included, which are no records."""


def has_line_ranges(path: Path) -> bool:
    """Return whether a file's records are its lines, and it is so large that it is worth dividing."""
    return path.suffix.lower() in _READERS and path.stat().st_size >= MIN_BYTES


def count_lines(path: Path, *, end: int | None = None) -> int:
    """Return the number of lines up to a byte at which a line begins, or of the file; blank lines are counted too.

    Raises:
        ValueError: If the file is UTF-16.
    """
    open_bytes(path).close()
    num_bytes = path.stat().st_size if end is None else end
    num_lines, last = 0, b"\n"
    with path.open("rb", buffering=0) as stream:
        while num_bytes > 0 and (block := stream.read(min(_BYTES_PER_READ, num_bytes))):
            num_lines, num_bytes, last = num_lines + block.count(b"\n"), num_bytes - len(block), block[-1:]
    return num_lines + (last != b"\n")


def line_ranges(path: Path, *, num_bytes: int, start: int) -> Iterator[LineRange]:
    """Yield ranges of `num_bytes` bytes, each extended to the end of a line, from a byte at which a line begins.

    Example: in ranges of 4 bytes from byte 0, the lines `a`, `bcd`, `ef` are the ranges 0-6 and 6-9.
    """
    size, first_line = path.stat().st_size, 1 + count_lines(path, end=start)
    with path.open("rb") as stream:
        while start < size:
            stream.seek(start)
            block = stream.read(num_bytes)
            rest = b"" if block.endswith(b"\n") else stream.readline()
            end = start + len(block) + len(rest)
            num_lines = block.count(b"\n") + rest.count(b"\n") + (not (rest or block).endswith(b"\n"))
            yield LineRange(start=start, end=end, first_line=first_line, num_lines=num_lines)
            start, first_line = end, first_line + num_lines


def read_range(path: Path, lines: LineRange) -> Iterator[Record]:
    """Yield the records of a range."""
    with open_bytes(path) as stream:  # behind a byte order mark
        stream.seek(max(lines.start, stream.tell()))
        content = stream.read(lines.end - stream.tell())
    numbered = numbered_lines(io.BytesIO(content), first=lines.first_line)
    yield from _READERS[path.suffix.lower()](numbered)
