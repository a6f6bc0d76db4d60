"""Divide the records of a split's files into blocks, the unit of work of a process that encodes.

Where blocks begin and end depends on the records alone, not on the number of processes, so that blocks encoded by an
interrupted preparation fit into the one that continues it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from versatune_ds.data.sources.readers import read_records

MIN_RECORDS_PER_BLOCK = 2000  # with fewer, handing a block to a process costs more than it saves
_MAX_RECORDS_PER_BLOCK = 16_000
_CHARACTERS_PER_BLOCK = 1 << 23  # the most that a process encodes at once, but for a longer single record
_BLOCKS_PER_SPLIT = 256  # if blocks of that size are allowed: work for as many processes

RecordFields: TypeAlias = tuple[int, int, str, str]
"""Position of the file, line, JSON text, problem."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a block ends and the next one begins: behind so many records of a file."""

    file: int
    num_records: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Successive records of a split's files."""

    number: int
    records: list[RecordFields]
    end: Place


def count_records(path: Path) -> int:
    """Return the number of records of a file.

    Raises:
        ValueError: If the file cannot be read completely.
    """
    return sum(1 for _ in read_records(path))


def records_per_block(num_records: int) -> int:
    """Return how many records a block has at most, for a split of `num_records`."""
    return min(_MAX_RECORDS_PER_BLOCK, max(MIN_RECORDS_PER_BLOCK, num_records // _BLOCKS_PER_SPLIT))


def read_blocks(files: Sequence[Path], *, num_per_block: int, first: int, start: Place) -> Iterator[Block]:
    """Yield the blocks of files in order, from block `first`, which begins at `start`.

    Files before `start` are not opened; the records before it in its own file are read and skipped.

    Raises:
        ValueError: If a file cannot be read.
    """
    number, records, num_characters, end = first, [], 0, start
    for file in range(start.file, len(files)):
        num_skipped = start.num_records if file == start.file else 0
        for position, record in enumerate(read_records(files[file]), start=1):
            if position <= num_skipped:
                continue
            records.append((file, record.line, record.json_text, record.problem))
            num_characters += len(record.json_text)
            end = Place(file, position)
            if len(records) == num_per_block or num_characters >= _CHARACTERS_PER_BLOCK:
                yield Block(number=number, records=records, end=end)
                number, records, num_characters = number + 1, [], 0
    if records:
        yield Block(number=number, records=records, end=end)
