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

MIN_RECORDS_PER_BLOCK = 2000  # with fewer, handing a block to a process costs more than it saves
_MAX_RECORDS_PER_BLOCK = 16_000
_SIZE_PER_BLOCK = 1 << 23  # characters or bytes, the most that a process encodes at once, but for a longer record
_BLOCKS_PER_SPLIT = 256  # if blocks of that size are allowed: work for as many processes

RecordFields: TypeAlias = tuple[int, int, str, str]
"""Position of the file, line, JSON text, problem."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a block ends and the next one begins."""

    file: int
    position: int
    """Records of the file before it; bytes, if the file is divided by lines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRange:
    """Lines of a file, to be read by the process that encodes them."""

    file: int
    path: Path
    lines: LineRange


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Successive records of a split's files."""

    number: int
    content: list[RecordFields] | FileRange
    end: Place

    @property
    def num_records(self) -> int:
        """Return the number of records; blank lines of a divided file are counted too."""
        return self.content.lines.num_lines if isinstance(self.content, FileRange) else len(self.content)

    def records(self) -> list[RecordFields]:
        """Return the records, read from the file if they are a part of one."""
        if isinstance(self.content, FileRange):
            found = read_range(self.content.path, self.content.lines)
            return [_fields(record, file=self.content.file) for record in found]
        return self.content


def count_records(path: Path) -> int:
    """Return the number of records of a file; blank lines of a file that is divided are counted too.

    Raises:
        ValueError: If the file cannot be read completely.
    """
    return count_lines(path) if has_line_ranges(path) else sum(1 for _ in read_records(path))


def records_per_block(num_records: int) -> int:
    """Return how many records a block has, if they are not long, for a split of `num_records`."""
    return min(_MAX_RECORDS_PER_BLOCK, max(MIN_RECORDS_PER_BLOCK, num_records // _BLOCKS_PER_SPLIT))


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
    number, records, size, end = first, [], 0, start
    for file in range(start.file, len(files)):
        position = start.position if file == start.file else 0
        if has_line_ranges(files[file]):
            # Blocks of their own, which are not read here.
            if records:
                yield Block(number=number, content=records, end=end)
                number, records, size = number + 1, [], 0
            num_bytes = min(_SIZE_PER_BLOCK, files[file].stat().st_size * num_per_block // num_records[file] + 1)
            for lines in line_ranges(files[file], num_bytes=num_bytes, start=position):
                content = FileRange(file=file, path=files[file], lines=lines)
                yield Block(number=number, content=content, end=Place(file, lines.end))
                number += 1
            continue
        # Small files share blocks.
        for num_read, record in enumerate(read_records(files[file]), start=1):
            if num_read <= position:
                continue
            records.append(_fields(record, file=file))
            size += len(record.json_text)
            end = Place(file, num_read)
            if len(records) == num_per_block or size >= _SIZE_PER_BLOCK:
                yield Block(number=number, content=records, end=end)
                number, records, size = number + 1, [], 0
    if records:
        yield Block(number=number, content=records, end=end)


def _fields(record: Record, *, file: int) -> RecordFields:
    return file, record.line, record.json_text, record.problem
