"""Read the records of one file, whatever its format, one at a time.

Every format becomes a stream of (line, JSON text of one record). So forms are recognised in one place, in many
processes, and the place of a record in its file stays known. No file is read fully into memory, except a `.json` file
with a single object.

Lines count from 1; for Parquet and Arrow they are row numbers, for a `.json` object entry numbers.
"""

from __future__ import annotations

import csv
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from versatune_ds.data.sources.arrow_values import distinct_names, rows_of_batch
from versatune_ds.data.sources.json_files import read_json, read_json_lines
from versatune_ds.data.sources.records import COMPRESSIONS, Record, json_text, open_text, read_lines

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".parquet", ".arrow")
_ROWS_PER_READ = 1000

csv.field_size_limit(1 << 30)  # the default, 128 KiB, refuses long documents


def format_of(path: Path) -> str | None:
    """Return a file's format, its suffix without a compression suffix, or None for a format that is not read."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in SUFFIXES else None


def read_records(path: Path) -> Iterator[Record]:
    """Yield the records of a file in order.

    Raises:
        ValueError: If the file cannot be read at all: wrong encoding, corrupt compression, not JSON, not Parquet.
            The message begins with the file.
    """
    readers = {
        ".parquet": _read_parquet,
        ".arrow": _read_arrow,
        ".json": read_json,
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".txt": _read_text_lines,
    }
    reader = readers.get(format_of(path) or "", read_json_lines)
    try:
        yield from reader(path)
    except (OSError, EOFError, zlib.error, pa.ArrowException, csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error


def _read_text_lines(path: Path) -> Iterator[Record]:
    yield from records_of_text_lines(read_lines(path))


def records_of_text_lines(lines: Iterable[tuple[int, str, str]]) -> Iterator[Record]:
    """Yield the lines of a plain text, as `read_lines` yields them, as records."""
    for number, text, problem in lines:
        yield Record(line=number, json_text=json_text({"text": text}), problem=problem)


def _read_csv(path: Path) -> Iterator[Record]:
    """Yield the rows of a table with a header line; quoted cells may contain line ends.

    Cells are text: `nan`, `None` or `NA` may be an answer. Only an empty cell means no value.

    Raises:
        ValueError: If a quote is never closed: all that follows would be one row.
    """
    delimiter = "\t" if format_of(path) == ".tsv" else ","
    with open_text(path) as stream:
        cells = csv.reader(stream, delimiter=delimiter, strict=True)
        header = _distinct_header(next(cells, []))
        line = 1  # of the header, if no cell of it contains a line end
        while True:
            try:
                row = next(cells)
            except StopIteration:
                return
            except csv.Error as error:
                if "unexpected end" in str(error):  # csv has one type for all errors
                    raise ValueError(f"{path}:{line + 1}: a quote in this row is never closed; close it") from None
                yield Record(line=line + 1, json_text="{}", problem=f"not valid CSV: {error}")
            else:
                if row:
                    yield _row_of_table(row, header=header, line=line + 1)
            line = cells.line_num


def _distinct_header(header: list[str]) -> list[str]:
    """Return a header with unique names; columns without a name (the index that pandas writes) stay without."""
    names = iter(distinct_names([name for name in header if name]))
    return [next(names) if name else "" for name in header]


def _row_of_table(cells: list[str], *, header: list[str], line: int) -> Record:
    """Return a row of a table as a record; missing cells at its end are null, columns without a name are dropped."""
    num_surplus = max(len(cells) - len(header), 0)
    problem = f"{num_surplus} more cells than the header" if num_surplus else ""
    padded = [*cells, *[None] * (len(header) - len(cells))]
    row = {name: cell for name, cell in zip(header, padded, strict=False) if name}
    return Record(line=line, json_text=json_text(row), problem=problem)


def _read_parquet(path: Path) -> Iterator[Record]:
    with pq.ParquetFile(path) as file:
        yield from _read_batches(file.iter_batches(batch_size=_ROWS_PER_READ))


def _read_arrow(path: Path) -> Iterator[Record]:
    """Yield the rows of an Arrow file, or of an Arrow stream, which `datasets` saves under the same suffix."""
    with pa.memory_map(str(path)) as source:
        try:
            reader = pa.ipc.open_file(source)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        except pa.ArrowInvalid:
            source.seek(0)
            batches = iter(pa.ipc.open_stream(source))
        yield from _read_batches(batches)


def _read_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[Record]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _ROWS_PER_READ):
            for row in rows_of_batch(batch.slice(start, _ROWS_PER_READ)):
                number += 1
                yield Record(line=number, json_text=json_text(row))
