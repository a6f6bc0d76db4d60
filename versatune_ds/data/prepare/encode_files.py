"""Run the encoder over files in many processes, in constant memory, and resume after a kill.

This process reads the records and gives them out in blocks. A process that encodes writes each block to disk as a part
(`parts.py`). Parts are used in the order of their records, whichever is finished first, while later ones are encoded.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from versatune_ds.data.prepare.encode_records import OUTPUT_SCHEMA, RecordEncoder
from versatune_ds.data.prepare.parts import Part, PartsFolder
from versatune_ds.data.prepare.record_blocks import (
    Block,
    Place,
    count_records,
    num_expected_blocks,
    read_blocks,
    records_per_block,
)
from versatune_ds.data.prepare.source_changes import FileState, check_unchanged
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

    files: Sequence[Path]
    states: dict[Path, FileState]
    encoder: RecordEncoder
    parts: PartsFolder

    def __call__(self, block: Block) -> Part:
        """Return the part, which is on disk; RuntimeError if a file has changed, so that no part has other content."""
        records = block.records()
        tables = [
            self.encoder(_records_table(records[start : start + _RECORDS_PER_BATCH]))
            for start in range(0, len(records), _RECORDS_PER_BATCH)
        ]
        lines = pa.concat_tables(tables).combine_chunks() if tables else OUTPUT_SCHEMA.empty_table()
        files = self.files[block.start.file : block.end.file + 1]
        check_unchanged({path: self.states[path] for path in files})
        return self.parts.write(
            lines, number=block.number, num_records=block.num_records, start=block.start, end=block.end
        )


def count_files(files: Sequence[Path], *, parts: PartsFolder, num_processes: int, domain: str) -> list[int]:
    """Return the number of records of each file, counted unless an interrupted preparation has done so.

    Args:
        files: Data files.
        parts: Where the numbers are kept.
        num_processes: Processes that count.
        domain: The domain's name, for progress.

    Raises:
        ValueError: If a file cannot be read completely.
        RuntimeError: If a process that counts was killed.
    """
    num_records_per_file = parts.num_records_of_files()
    if num_records_per_file is None:
        is_small = sum(path.stat().st_size for path in files) < _MIN_BYTES_TO_COUNT_IN_PROCESSES
        num_processes = 1 if is_small else min(num_processes, len(files))
        with (
            working_on(f"{domain}: counting rows"),
            worker_processes(num_processes, function=count_records, what="counts rows") as start_counting,
        ):
            num_records_per_file = [wait() for wait in [start_counting(path) for path in files]]
        parts.keep_num_records(num_records_per_file)
    return num_records_per_file


def encode_files(
    files: Sequence[Path],
    *,
    states: dict[Path, FileState],
    num_records_per_file: Sequence[int],
    parts: PartsFolder,
    encoder: RecordEncoder,
    num_processes: int,
    domain: str,
) -> Iterator[pa.RecordBatch]:
    """Yield the encoder's output lines for all records of files, in order.

    Args:
        files: Data files; `file` in the output is a position in this sequence.
        states: Of the files, before their digests were computed.
        num_records_per_file: As `count_files` returns it.
        parts: What an interrupted call for the same files and encoder has encoded; the others are added.
        encoder: Turns record batches into output lines.
        num_processes: Processes that encode.
        domain: The domain's name, for progress.

    Raises:
        ValueError: If a file cannot be read at all.
        RuntimeError: If a file changes, a process that encodes was killed, or a part cannot be written.
    """
    # What an interrupted call has encoded: the parts at the beginning need no reading of records.
    num_records = sum(num_records_per_file)
    with working_on(f"{domain}: checking tokenised rows"):
        found = parts.find()
    if found:
        num_found = sum(part.num_records for part in found.values())
        _logger.info("%s: %s of %s rows already tokenised", domain, f"{num_found:,}", f"{num_records:,}")
    first = _parts_without_gap(found)
    with working_on(f"{domain}: reading tokenised rows"):
        for part in first:
            yield from part.read()
    # The others; those found among them count neither for the rate nor for the time left.
    num_processes = min(num_processes, num_expected_blocks(files, num_records=num_records))
    blocks = read_blocks(
        files,
        num_records=num_records_per_file,
        num_per_block=records_per_block(num_records),
        first=len(first),
        start=first[-1].end if first else Place(0, 0),
    )
    encode = BlockEncoder(files=files, states=states, encoder=encoder, parts=parts)
    num_ahead = num_processes + _BLOCKS_AHEAD if num_processes > 1 else 0
    num_before = sum(part.num_records for part in first)
    with (
        counting(f"{_escaped(domain)}: tokenising %s rows", num_items=num_records, num_before=num_before) as work,
        worker_processes(num_processes, function=encode, what="tokenises") as start_encoding,
    ):
        for part in _parts_of_blocks(blocks, found=found, start_encoding=start_encoding, num_ahead=num_ahead):
            yield from part.read()
            work.num_done += part.num_records
            if found.get(part.start) == part:
                work.num_before += part.num_records


def _parts_without_gap(found: dict[Place, Part]) -> list[Part]:
    """Return the parts from the beginning of the records on, each beginning where the one before it ends."""
    parts, start = [], Place(0, 0)
    while start in found:
        parts.append(found[start])
        start = found[start].end
    return parts


def _parts_of_blocks(
    blocks: Iterable[Block],
    *,
    found: dict[Place, Part],
    start_encoding: Callable[[Block], Callable[[], Part]],
    num_ahead: int,
) -> Iterator[Part]:
    """Yield the parts of blocks in order: those found, and the others once they are encoded, with some in work."""
    pending: deque[Callable[[], Part]] = deque()
    for block in blocks:
        part = found.get(block.start)
        is_found = part is not None and part.end == block.end
        if part is not None and not is_found:  # from blocks of another size
            part.path.unlink()
        pending.append((lambda found_part=part: found_part) if is_found else start_encoding(block))
        if len(pending) > num_ahead:
            yield pending.popleft()()
    while pending:
        yield pending.popleft()()


def _escaped(text: str) -> str:
    """Return a text that stands for itself in a format with `%`."""
    return text.replace("%", "%%")


def _records_table(records: Sequence[tuple]) -> pa.Table:
    columns = zip(*records, strict=True)
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, _RECORD_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=_RECORD_SCHEMA)
