"""Run the encoder over files in many processes, in constant memory, and resume after a kill.

This process reads the records and gives them out in blocks. A process that encodes writes each block to disk as a part
(`parts.py`). Parts are used in the order of their records, whichever is finished first, while later ones are encoded.
"""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from versatune_ds.data.prepare.encode_records import OUTPUT_SCHEMA, RecordEncoder
from versatune_ds.data.prepare.parts import Part, PartsFolder
from versatune_ds.data.prepare.record_blocks import (
    MIN_RECORDS_PER_BLOCK,
    Block,
    Place,
    count_records,
    read_blocks,
    records_per_block,
)
from versatune_ds.data.prepare.worker_processes import worker_processes
from versatune_ds.progress import counting, working_on

_logger = logging.getLogger(__name__)

_RECORD_SCHEMA = pa.schema(
    [("file", pa.int32()), ("line", pa.int64()), ("json_text", pa.large_string()), ("problem", pa.string())]
)
_RECORDS_PER_BATCH = 256
_BLOCKS_AHEAD = 2  # blocks ready to be taken, beyond one for each process
_MIN_BYTES_TO_COUNT_IN_PROCESSES = 1 << 26


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockEncoder:
    """Encode a block of records into a part; the object is sent to worker processes."""

    encoder: RecordEncoder
    parts: PartsFolder

    def __call__(self, block: Block) -> Part:
        """Return the part, which is on disk."""
        records = block.records()
        tables = [
            self.encoder(_records_table(records[start : start + _RECORDS_PER_BATCH]))
            for start in range(0, len(records), _RECORDS_PER_BATCH)
        ]
        lines = pa.concat_tables(tables).combine_chunks() if tables else OUTPUT_SCHEMA.empty_table()
        return self.parts.write(lines, number=block.number, num_records=block.num_records, end=block.end)


def encode_files(
    files: Sequence[Path], *, parts: PartsFolder, encoder: RecordEncoder, num_processes: int, name: str
) -> Iterator[pa.RecordBatch]:
    """Yield the encoder's output lines for all records of files, in order.

    Args:
        files: Data files; `file` in the output is a position in this sequence.
        parts: What an interrupted call for the same files and encoder has encoded; the others are added.
        encoder: Turns record batches into output lines.
        num_processes: Processes that encode.
        name: Of the domain, for progress.

    Raises:
        ValueError: If a file cannot be read at all; each is read once before anything is encoded.
        RuntimeError: If a process that encodes was killed.
    """
    num_of_files = _num_records(files, parts=parts, num_processes=num_processes, name=name)
    num_records = sum(num_of_files)
    num_processes = min(num_processes, max(1, num_records // MIN_RECORDS_PER_BLOCK))
    found = parts.find()
    num_found = sum(part.num_records for part in found.values())
    if found:
        _logger.info("%s: %s of %s rows were tokenised before", name, f"{num_found:,}", f"{num_records:,}")
    with (
        counting(f"{name}: tokenising %s rows", num_items=num_records, num_before=num_found) as work,
        worker_processes(num_processes, function=BlockEncoder(encoder=encoder, parts=parts)) as start_encoding,
    ):
        for part in _parts_in_order(
            files,
            num_records=num_of_files,
            found=found,
            start_encoding=start_encoding,
            num_ahead=num_processes + _BLOCKS_AHEAD if num_processes > 1 else 0,
        ):
            yield from part.read()
            if part.number not in found:
                work.num_done += part.num_records


def _parts_in_order(
    files: Sequence[Path],
    *,
    num_records: Sequence[int],
    found: dict[int, Part],
    start_encoding: Callable[[Block], Callable[[], Part]],
    num_ahead: int,
) -> Iterator[Part]:
    """Yield the parts of all records: those found, and the others once they are encoded."""
    # The first parts without a gap: their records are not read again.
    number, start = 0, Place(0, 0)
    while number in found:
        yield found[number]
        number, start = number + 1, found[number].end
    # The others, with some blocks in work.
    pending: deque[Callable[[], Part]] = deque()
    num_per_block = records_per_block(sum(num_records))
    for block in read_blocks(files, num_records=num_records, num_per_block=num_per_block, first=number, start=start):
        part = found.get(block.number)
        is_found = part is not None and part.end == block.end
        pending.append(functools.partial(_itself, part) if is_found else start_encoding(block))
        if len(pending) > num_ahead:
            yield pending.popleft()()
    while pending:
        yield pending.popleft()()


def _itself(part: Part) -> Part:
    return part


def _num_records(files: Sequence[Path], *, parts: PartsFolder, num_processes: int, name: str) -> list[int]:
    """Return the number of records of each file, counted unless an interrupted preparation has done so."""
    num_of_files = parts.num_records_of_files()
    if num_of_files is None:
        is_small = sum(path.stat().st_size for path in files) < _MIN_BYTES_TO_COUNT_IN_PROCESSES
        num_processes = 1 if is_small else min(num_processes, len(files))
        with (
            working_on(f"{name}: counting rows"),
            worker_processes(num_processes, function=count_records) as start_counting,
        ):
            num_of_files = [wait() for wait in [start_counting(path) for path in files]]
        parts.keep_num_records(num_of_files)
    return num_of_files


def _records_table(records: Sequence[tuple]) -> pa.Table:
    columns = zip(*records, strict=True)
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, _RECORD_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=_RECORD_SCHEMA)
