"""Write one domain's examples into Arrow files, in constant memory.

Every record batch but the last has the same number of examples, so a reader finds an example by one division. Lengths
go into an index file, each in one contiguous column, so that planning can map each as one array.

Examples arrive as arrays of many and are copied once, into the record batch that is written. A finished file is forced
to disk and hashed in a thread, while the next one is written.

Shape legend: **n** examples.
"""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Some examples as arrays: example i has tokens[token_offsets[i] : token_offsets[i + 1]], and spans alike."""

    tokens: np.ndarray
    """int32, tokens of all examples, one after the other."""
    token_offsets: np.ndarray
    """[n + 1]."""
    spans: np.ndarray
    """int32, loss spans: flat pairs (start, end) within the example, end exclusive, in order."""
    span_offsets: np.ndarray
    """[n + 1]."""
    content_hash: np.ndarray
    """uint64 [n], hash of the content of each example's record before it was split."""

    def __len__(self) -> int:
        return len(self.content_hash)

    def between(self, start: int, end: int) -> Examples:
        """Return the examples start .. end-1, as views."""
        return Examples(
            tokens=self.tokens,
            token_offsets=self.token_offsets[start : end + 1],
            spans=self.spans,
            span_offsets=self.span_offsets[start : end + 1],
            content_hash=self.content_hash[start:end],
        )

    @property
    def num_loss_tokens(self) -> np.ndarray:
        """Return how many tokens of each example bear loss, int64 [n].

        Example: spans 2 5 | 1 2 4 6 have lengths 3 | 1 2, summed up from the left 0 3 4 6; the offsets 0 2 6 in pairs
        are 0 1 3, so the examples have 3 - 0 and 6 - 3 tokens.
        """
        first, last = int(self.span_offsets[0]), int(self.span_offsets[-1])
        spans = self.spans[first:last].astype(np.int64)
        summed = np.concatenate([[0], np.cumsum(spans[1::2] - spans[::2])])
        return np.diff(summed[(self.span_offsets - first) // 2])


class ShardWriter:
    """Write examples in chunks, chunks into files, and at the end index and manifest.

    Loss spans take 8 bytes per answer; a mask would take a byte per token.
    """

    def __init__(self, folder: Path, *, max_tokens: int) -> None:
        """Open a writer in an existing empty folder; the bound of lengths, `max_tokens`, decides the size of chunks."""
        self._folder = folder
        self._examples_per_chunk = int(np.clip(_TOKENS_PER_CHUNK // max_tokens, 64, 16384))
        self._pending: list[Examples] = []
        self._num_pending = 0
        self._files: list[Future[ShardFile]] = []
        self._hashing = ThreadPoolExecutor(max_workers=1, thread_name_prefix="versatune-shard-digest")
        self._file: pa.OSFile | None = None
        self._writer: pa.RecordBatchFileWriter | None = None
        self._num_in_file = 0
        self._columns = {name: (folder / f".{name}").open("wb") for name in INDEX_TYPES}

    def add(self, input_ids: np.ndarray, *, loss_spans: np.ndarray, content_hash: int) -> None:
        """Append one example: int32 tokens, int32 span borders, and the hash of its content before splitting."""
        examples = Examples(
            tokens=input_ids,
            token_offsets=np.array([0, len(input_ids)]),
            spans=loss_spans,
            span_offsets=np.array([0, len(loss_spans)]),
            content_hash=np.array([content_hash], dtype=np.uint64),
        )
        self.add_many(examples)

    def add_many(self, examples: Examples) -> None:
        """Append examples; their arrays are kept until their chunk is written."""
        start = 0
        while start < len(examples):
            end = min(start + self._examples_per_chunk - self._num_pending, len(examples))
            self._pending.append(examples.between(start, end))
            self._num_pending += end - start
            start = end
            if self._num_pending == self._examples_per_chunk:
                self._write_chunk()

    def close(self, *, domain: str, split: str, settings: dict[str, Any]) -> Manifest:
        """Write the remaining examples, the index and, last, the manifest; return the manifest."""
        if self._pending:
            self._write_chunk()
        self._close_file()
        columns_N = self._index_columns()
        index = self._write_index(columns_N)
        lengths_N = columns_N["num_tokens"]
        with self._hashing:
            files = tuple(file.result() for file in self._files)
        manifest = Manifest(
            domain=domain,
            split=split,
            num_examples=len(lengths_N),
            num_tokens=int(lengths_N.sum(dtype=np.int64)),
            num_loss_tokens=int(columns_N["num_loss_tokens"].sum(dtype=np.int64)),
            longest_tokens=int(lengths_N.max(initial=0)),
            examples_per_chunk=self._examples_per_chunk,
            files=files,
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
            self._file = pa.OSFile(str(self._path_of_file()), "wb")
            self._writer = pa.ipc.new_file(self._file, TOKEN_SCHEMA)
        pending, self._pending = self._pending, []
        columns = [
            _list_column([(examples.tokens, examples.token_offsets) for examples in pending]),
            _list_column([(examples.spans, examples.span_offsets) for examples in pending]),
        ]
        self._writer.write_batch(pa.record_batch(columns, schema=TOKEN_SCHEMA))
        index = {
            "num_tokens": [np.diff(examples.token_offsets) for examples in pending],
            "num_loss_tokens": [examples.num_loss_tokens for examples in pending],
            "content_hash": [examples.content_hash for examples in pending],
        }
        for name, dtype in INDEX_TYPES.items():
            self._columns[name].write(np.concatenate(index[name]).astype(dtype).tobytes())
        self._num_in_file += self._num_pending
        self._num_pending = 0
        if self._file.tell() >= _BYTES_PER_FILE:
            self._close_file()

    def _path_of_file(self) -> Path:
        return self._folder / f"tokens-{len(self._files):05d}.arrow"

    def _close_file(self) -> None:
        """Finish the open file, if any; its size and digest are taken in a thread."""
        if self._writer is None:
            return
        self._writer.close()
        self._file.close()
        described = self._hashing.submit(describe_file, self._path_of_file(), num_examples=self._num_in_file)
        self._files.append(described)
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


def _list_column(lists: list[tuple[np.ndarray, np.ndarray]]) -> pa.ListArray:
    """Return one list column of (values, offsets) of several, with offsets from 0."""
    values = [values[offsets[0] : offsets[-1]] for values, offsets in lists]
    lengths = np.concatenate([np.diff(offsets) for _, offsets in lists])
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(values).astype(np.int32, copy=False)))
