"""Write one domain's examples into Arrow files, in constant memory.

Every record batch but the last has the same number of examples, so a reader finds an example by one division. Lengths
go into an index file, each in one contiguous column, so that planning can map each as one array.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from versatune_ds.data.manifest import Manifest, ShardFile, digest_of_file, write_manifest

TOKEN_SCHEMA = pa.schema([("input_ids", pa.list_(pa.int32())), ("loss_spans", pa.list_(pa.int32()))])
INDEX_TYPES = {"num_tokens": np.int32, "num_loss_tokens": np.int32, "content_hash": np.uint64}
INDEX_NAME = "index.arrow"
_TOKENS_PER_CHUNK = 1 << 24  # 64 MiB of int32, the most that the writer has in memory
_BYTES_PER_FILE = 1 << 30


class ShardWriter:
    """Write examples in chunks, chunks into files, and at the end index and manifest.

    An example is its tokens and its loss spans: flat pairs (start, end), end exclusive, in order. Spans take 8 bytes
    per answer; a mask would take a byte per token.
    """

    def __init__(self, folder: Path, *, max_tokens: int) -> None:
        """Open a writer in an existing empty folder; the bound of lengths, `max_tokens`, decides the size of chunks."""
        self._folder = folder
        self._examples_per_chunk = int(np.clip(_TOKENS_PER_CHUNK // max_tokens, 64, 16384))
        self._token_rows: list[np.ndarray] = []
        self._span_rows: list[np.ndarray] = []
        self._index_rows: list[tuple[int, int, int]] = []
        self._files: list[ShardFile] = []
        self._file: pa.OSFile | None = None
        self._writer: pa.RecordBatchFileWriter | None = None
        self._num_in_file = 0
        self._columns = {name: (folder / f".{name}").open("wb") for name in INDEX_TYPES}

    def add(self, input_ids: np.ndarray, *, loss_spans: np.ndarray, content_hash: int) -> None:
        """Append one example: int32 tokens, int32 span borders, and the hash of its content before splitting."""
        self._token_rows.append(input_ids)
        self._span_rows.append(loss_spans)
        num_loss_tokens = int(loss_spans[1::2].sum() - loss_spans[::2].sum())
        self._index_rows.append((len(input_ids), num_loss_tokens, content_hash))
        if len(self._token_rows) == self._examples_per_chunk:
            self._write_chunk()

    def close(self, *, domain: str, split: str, settings: dict[str, Any]) -> Manifest:
        """Write the remaining examples, the index and, last, the manifest; return the manifest."""
        if self._token_rows:
            self._write_chunk()
        self._close_file()
        columns_N = self._index_columns()
        index = self._write_index(columns_N)
        lengths_N = columns_N["num_tokens"]
        manifest = Manifest(
            domain=domain,
            split=split,
            num_examples=len(lengths_N),
            num_tokens=int(lengths_N.sum(dtype=np.int64)),
            num_loss_tokens=int(columns_N["num_loss_tokens"].sum(dtype=np.int64)),
            longest_tokens=int(lengths_N.max(initial=0)),
            examples_per_chunk=self._examples_per_chunk,
            files=tuple(self._files),
            index=index,
            settings=settings,
        )
        for name in INDEX_TYPES:
            (self._folder / f".{name}").unlink()
        write_manifest(self._folder, manifest=manifest)
        return manifest

    def _write_chunk(self) -> None:
        """Write the collected examples as one record batch; begin a new file if needed."""
        if self._writer is None:
            path = self._folder / f"tokens-{len(self._files):05d}.arrow"
            self._file = pa.OSFile(str(path), "wb")
            self._writer = pa.ipc.new_file(self._file, TOKEN_SCHEMA)
        columns = [_list_column(rows) for rows in (self._token_rows, self._span_rows)]
        self._writer.write_batch(pa.record_batch(columns, schema=TOKEN_SCHEMA))
        self._num_in_file += len(self._token_rows)
        for (name, dtype), values in zip(INDEX_TYPES.items(), zip(*self._index_rows, strict=True), strict=True):
            self._columns[name].write(np.array(values, dtype=dtype).tobytes())
        self._token_rows, self._span_rows, self._index_rows = [], [], []
        if self._file.tell() >= _BYTES_PER_FILE:
            self._close_file()

    def _close_file(self) -> None:
        """Finish the open file, if any, and record its size and digest."""
        if self._writer is None:
            return
        self._writer.close()
        self._file.close()
        path = self._folder / f"tokens-{len(self._files):05d}.arrow"
        self._files.append(describe_file(path, num_examples=self._num_in_file))
        self._writer, self._file, self._num_in_file = None, None, 0

    def _index_columns(self) -> dict[str, np.ndarray]:
        """Return the columns of the index, mapped from the temporary files they were written to."""
        columns_N = {}
        for name, dtype in INDEX_TYPES.items():
            self._columns[name].close()
            path = self._folder / f".{name}"
            is_empty = path.stat().st_size == 0
            columns_N[name] = np.zeros(0, dtype) if is_empty else np.memmap(path, dtype=dtype, mode="r")
        return columns_N

    def _write_index(self, columns_N: dict[str, np.ndarray]) -> ShardFile:
        """Write all columns as one record batch, so that a reader can map each as one array."""
        path = self._folder / INDEX_NAME
        batch = pa.record_batch({name: pa.array(values_N) for name, values_N in columns_N.items()})
        with pa.OSFile(str(path), "wb") as stream, pa.ipc.new_file(stream, batch.schema) as writer:
            writer.write_batch(batch)
        return describe_file(path, num_examples=0)


def describe_file(path: Path, *, num_examples: int) -> ShardFile:
    """Force a finished file to disk and return its entry in the manifest."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
    return ShardFile(
        name=path.name, num_examples=num_examples, num_bytes=path.stat().st_size, digest=digest_of_file(path)
    )


def _list_column(rows: list[np.ndarray]) -> pa.ListArray:
    offsets = np.zeros(len(rows) + 1, dtype=np.int32)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    values = np.concatenate(rows).astype(np.int32, copy=False)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))
