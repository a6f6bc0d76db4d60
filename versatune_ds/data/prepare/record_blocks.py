"""Divide the records of a split's files into blocks, the unit of work of a process that encodes.

A large file of lines is divided at line ends and read by the processes that encode. The records of all other files are
read here. Where blocks begin and end depends on the files alone, not on the number of processes, so that blocks encoded
by an interrupted preparation fit into the one that continues it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from versatune_ds.data.sources.line_ranges import LineRange, count_lines, has_line_ranges, line_ranges, read_range
from versatune_ds.data.sources.readers import read_records
from versatune_ds.data.sources.records import Record

_MIN_RECORDS_PER_BLOCK = 2000  # with fewer, handing a block to a process costs more than it saves
_MAX_RECORDS_PER_BLOCK = 16_000
_SIZE_PER_BLOCK = 1 << 23  # characters or bytes, the most that a process encodes at once, but for a longer record
_BLOCKS_PER_SPLIT = 256  # if blocks of that size are allowed: work for as many processes

RecordFields: TypeAlias = tuple[int, int, str, str]
"""Position of the file, line, JSON text, problem."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a block ends and the next one begins."""

    file: int
    """Position of the file."""
    position: int
    """Records of the file before it; bytes, if the file is divided by lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRange:
    """Lines of a file, to be read by the process that encodes them."""

    file_position: int
    path: Path
    lines: LineRange


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Successive records of a split's files."""

    number: int
    content: list[RecordFields] | FileRange
    start: Place
    end: Place

    @property
    def num_records(self) -> int:
        """Return the number of records; blank lines of a divided file are counted too."""
        return self.content.lines.num_lines if isinstance(self.content, FileRange) else len(self.content)

    def records(self) -> list[RecordFields]:
        """Return the records, read from the file if they are a part of one."""
        if isinstance(self.content, FileRange):
            found = read_range(self.content.path, self.content.lines)
            return [_fields(record, file_position=self.content.file_position) for record in found]
        return self.content


def count_records(path: Path) -> int:
    """Return the number of records of a file; blank lines of a file that is divided are counted too.

    Raises:
        ValueError: If the file cannot be read completely.
    """
    return count_lines(path) if has_line_ranges(path) else sum(1 for _ in read_records(path))


def records_per_block(num_records: int) -> int:
    """Return how many records a block has, if they are not long, for a split of `num_records`."""
    return min(_MAX_RECORDS_PER_BLOCK, max(_MIN_RECORDS_PER_BLOCK, num_records // _BLOCKS_PER_SPLIT))


def num_expected_blocks(files: Sequence[Path], *, num_records: int) -> int:
    """Return about how many blocks files have, by their records and by their bytes; 1 if they are small.

    A compressed file has more than its bytes tell.
    """
    num_bytes = sum(path.stat().st_size for path in files)
    return max(1, num_records // _MIN_RECORDS_PER_BLOCK, num_bytes // _SIZE_PER_BLOCK)


def read_blocks(
    files: Sequence[Path], *, num_records: Sequence[int], num_per_block: int, first: int, start: Place
) -> Iterator[Block]:
    """Yield the blocks of files in order, from block `first`, which begins at `start`.

    Files before `start` are not opened; the records before it in its own file are read and skipped, or counted as
    lines.

    Args:
        files: Data files.
        num_records: Of each file, as `count_records` returns it.
        num_per_block: Records of a block, if they are not long; about as many of a divided file.
        first: Number of the first block.
        start: Where it begins; `Place(0, 0)` is the beginning.

    Raises:
        ValueError: If a file cannot be read.
    """
    contents = _contents(files, num_records=num_records, num_per_block=num_per_block, start=start)
    for number, (content, end) in enumerate(contents, start=first):
        yield Block(number=number, content=content, start=start, end=end)
        start = end


def _contents(
    files: Sequence[Path], *, num_records: Sequence[int], num_per_block: int, start: Place
) -> Iterator[tuple[list[RecordFields] | FileRange, Place]]:
    """Yield what blocks contain and where they end: small files share blocks, divided ones have blocks of their own."""
    records, size, end = [], 0, start
    for file_position in range(start.file, len(files)):
        path, position = files[file_position], start.position if file_position == start.file else 0
        if has_line_ranges(path):
            if records:
                yield records, end
                records, size = [], 0
            num_bytes = path.stat().st_size * num_per_block // num_records[file_position] + 1
            for file_range in _ranges(path, file_position=file_position, num_bytes=num_bytes, start=position):
                yield file_range, Place(file_position, file_range.lines.end)
            continue
        for num_read, record in enumerate(read_records(path), start=1):
            if num_read <= position:
                continue
            records.append(_fields(record, file_position=file_position))
            size += len(record.json_text)
            end = Place(file_position, num_read)
            if len(records) == num_per_block or size >= _SIZE_PER_BLOCK:
                yield records, end
                records, size = [], 0
    if records:
        yield records, end


def _ranges(path: Path, *, file_position: int, num_bytes: int, start: int) -> Iterator[FileRange]:
    """Yield the ranges of a divided file, which are not read here."""
    for lines in line_ranges(path, num_bytes=min(_SIZE_PER_BLOCK, num_bytes), start=start):
        yield FileRange(file_position=file_position, path=path, lines=lines)


def _fields(record: Record, *, file_position: int) -> RecordFields:
    return file_position, record.line, record.json_text, record.problem
