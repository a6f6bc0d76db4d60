"""Read some records of a data file, spread over it, and estimate how many it has.

A file of lines can be read from any place, so a sample of it costs the same whatever its size. Of other large files
only the beginning is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePath

import pyarrow.parquet as pq

from versatune_ds.data.sources.readers import format_of, read_records
from versatune_ds.data.sources.records import COMPRESSIONS, Record

_MAX_WHOLE_BYTES = 8 << 20
"""Files up to this size are read completely, so that their records are counted and not estimated."""

_LINE_FORMATS = (".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSample:
    """Some records of a file."""

    path: PurePath
    records: tuple[Record, ...]
    num_rows: float
    """Records of the file; an estimate unless `is_counted`."""
    is_counted: bool
    num_remote_bytes: int | None = None
    """Size of a remote file of which only the beginning was read, and which is not on this machine."""

    @property
    def num_bytes(self) -> int:
        """Return the file's size."""
        return Path(self.path).stat().st_size if self.num_remote_bytes is None else self.num_remote_bytes

    @property
    def is_whole(self) -> bool:
        """Return whether this is every record of the file."""
        return self.is_counted and len(self.records) == self.num_rows

    def place(self, record: Record) -> str:
        """Return file and line of a record; a record found by its place in bytes has no known line."""
        return f"{self.path}:{record.line}" if record.line else str(self.path)


def sample_file(path: Path, *, num_records: int) -> FileSample:
    """Return up to `num_records` records of a file.

    Raises:
        ValueError: If the file cannot be read at all.
    """
    num_bytes, is_compressed = path.stat().st_size, path.suffix.lower() in COMPRESSIONS
    if num_bytes <= _MAX_WHOLE_BYTES and not is_compressed:
        records = list(read_records(path))
        return FileSample(path=path, records=_spread(records, num_records), num_rows=len(records), is_counted=True)
    if format_of(path) in _LINE_FORMATS and not is_compressed:
        return _sample_lines(path, num_bytes=num_bytes, num_records=num_records)
    records = list(islice(read_records(path), num_records + 1))
    is_all = len(records) <= num_records
    num_rows = len(records) if is_all else _estimated_rows(path, records=records, num_bytes=num_bytes)
    is_counted = is_all or format_of(path) == ".parquet"
    return FileSample(path=path, records=tuple(records[:num_records]), num_rows=num_rows, is_counted=is_counted)


def _spread(records: Sequence[Record], num_records: int) -> tuple[Record, ...]:
    """Return records at even distances, all of them where there are no more."""
    if len(records) <= num_records:
        return tuple(records)
    return tuple(records[i * len(records) // num_records] for i in range(num_records))


def _sample_lines(path: Path, *, num_bytes: int, num_records: int) -> FileSample:
    """Return the lines that follow evenly spaced places of a file."""
    records, num_line_bytes = [], 0
    with path.open("rb") as stream:
        for i in range(num_records):
            stream.seek(i * num_bytes // num_records)
            if i:
                stream.readline()  # the rest of a line that began before
            line = stream.readline()
            num_line_bytes += len(line)
            text = line.decode("utf-8", "replace").strip("\ufeff\r\n")
            if text.strip():
                problem = "not UTF-8 text" if "\ufffd" in text else ""
                records.append(Record(line=0, json_text=text, problem=problem))
    num_rows = num_bytes / max(num_line_bytes / num_records, 1.0)
    return FileSample(path=path, records=tuple(records), num_rows=num_rows, is_counted=False)


def _estimated_rows(path: Path, *, records: Sequence[Record], num_bytes: int) -> float:
    """Return the records of a file of which the beginning was read: counted for Parquet, else estimated by size.

    Approximate: compressed text is taken as a quarter of its size.
    """
    if format_of(path) == ".parquet":
        return float(pq.read_metadata(path).num_rows)
    mean_bytes = sum(len(record.json_text) for record in records) / len(records)
    expansion = 4.0 if path.suffix.lower() in COMPRESSIONS else 1.0
    return num_bytes * expansion / max(mean_bytes, 1.0)
