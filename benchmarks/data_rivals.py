"""Wrap other libraries' mixture loaders with our packing and tensors, so that only the loaders differ.

A contender is an object with `start()`, `next_batch()`, `resume()` (rebuild it at its current position and return the
next batch) and `change_weights()` (the same with other weights). What a rival cannot do is in its docstring.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from data_corpus import DOMAINS, WEIGHTS, import_streaming, open_shards

from versatune_ds.data.batch import Batch
from versatune_ds.data.collate import collate_rows
from versatune_ds.data.loader import LoaderSettings, MixtureLoader
from versatune_ds.data.order.packing import pack_prefix
from versatune_ds.data.order.plan import Placement
from versatune_ds.domains import DomainSet

OTHER_WEIGHTS = tuple(reversed(WEIGHTS))


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchShape:
    """Rows of a batch and tokens of a row."""

    rows: int
    row_tokens: int


class _Buffered:
    """Examples in memory, read as from shards."""

    name = "buffer"

    def __init__(self, examples: Sequence[dict[str, Any]]) -> None:
        self._examples = examples

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens and loss marks of an example."""
        example = self._examples[index]
        input_ids = np.asarray(example["input_ids"])
        return input_ids, np.arange(len(input_ids)) >= example["prompt_tokens"]


class Packer:
    """Pack a stream of examples with our best fit and our collation; what does not fit waits for the next batch.

    Args:
        examples: Stream of examples.
        shape: Shape of the batches.
        num_read: Examples read before this stream, in the run that it continues.
    """

    def __init__(self, examples: Iterator[dict[str, Any]], shape: BatchShape, *, num_read: int = 0) -> None:
        self._examples, self._shape, self.num_read = examples, shape, num_read
        self._waiting: list[dict[str, Any]] = []

    def next_batch(self) -> Batch:
        """Return the next packed batch."""
        budget = self._shape.rows * self._shape.row_tokens
        num_tokens = sum(len(example["input_ids"]) for example in self._waiting)
        while num_tokens <= budget:
            self._waiting.append(next(self._examples))
            self.num_read += 1
            num_tokens += len(self._waiting[-1]["input_ids"])
        lengths = np.array([len(example["input_ids"]) for example in self._waiting], dtype=np.int32)
        rows, offsets = pack_prefix(lengths[:-1], num_rows=self._shape.rows, row_tokens=self._shape.row_tokens)
        batch = self._collate(lengths[: len(rows)], rows, offsets)
        self._waiting = self._waiting[len(rows) :]
        return batch

    def _collate(self, lengths: np.ndarray, rows: np.ndarray, offsets: np.ndarray) -> Batch:
        """Lay examples out as our loader does."""
        by_row = np.lexsort((offsets, rows))
        prompts = np.array([self._waiting[i]["prompt_tokens"] for i in by_row])
        placement = Placement(
            domain_id_E=np.zeros(len(rows), dtype=np.int64),
            index_E=by_row,
            length_E=lengths[by_row],
            loss_length_E=lengths[by_row] - prompts,
            row_E=rows[by_row],
            offset_E=offsets[by_row],
        )
        return collate_rows(
            placement,
            first_row=0,
            num_rows=self._shape.rows,
            row_tokens=self._shape.row_tokens,
            shards=[_Buffered(self._waiting)],
            pad_token_id=0,
            num_loss_tokens_global=1,
        )


class Ours:
    """versatune_ds, through its loader and background thread."""

    name = "versatune_ds"

    def __init__(self, folder: Path, shape: BatchShape) -> None:
        self._folder, self._shape, self._step = folder, shape, 0
        self._weights_K = np.array(WEIGHTS)

    def start(self) -> None:
        """Open shards and loader."""
        self._loader = MixtureLoader(
            open_shards(self._folder),
            domain_set=DomainSet(DOMAINS),
            settings=LoaderSettings(
                seed=0,
                rows_per_batch=self._shape.rows,
                row_tokens=self._shape.row_tokens,
                rows_per_micro_batch=self._shape.rows,
            ),
        )

    def next_batch(self) -> Batch:
        """Plan one step and take it; nothing is prefetched, so that all of its time counts."""
        self._step += 1
        self._loader.plan(self._step, self._weights_K)
        return self._loader.take(self._step).micro_batches[0]

    def resume(self) -> Batch:
        """Continue from saved counters in a new loader."""
        state = self._loader.state_dict(self._step)
        self._loader.close()
        self.start()
        self._loader.load_state_dict(state)
        return self.next_batch()

    def change_weights(self) -> Batch:
        """Pass other weights to the next plan."""
        self._weights_K = np.array(OTHER_WEIGHTS)
        return self.next_batch()


class HfMap:
    """datasets.interleave_datasets of map-style datasets. It saves no position: a resume selects the other examples."""

    name = "HF interleave, map"

    def __init__(self, folder: Path, shape: BatchShape) -> None:
        self._folder, self._shape = folder, shape

    def start(self, weights: Sequence[float] = WEIGHTS, *, num_read: int = 0) -> None:
        """Shuffle every domain and interleave."""
        parts = [datasets.load_from_disk(self._folder / "hf" / name).shuffle(seed=0) for name in DOMAINS]
        self._mixed = datasets.interleave_datasets(
            parts, probabilities=list(weights), seed=0, stopping_strategy="all_exhausted"
        ).with_format("numpy")
        rest = self._mixed.select(range(num_read, len(self._mixed)))
        self._packer = Packer(iter(rest), self._shape, num_read=num_read)

    def next_batch(self) -> Batch:
        """Return the next packed batch."""
        return self._packer.next_batch()

    def resume(self) -> Batch:
        """Build the mixture again and skip by index."""
        self.start(num_read=self._packer.num_read)
        return self.next_batch()

    def change_weights(self) -> Batch:
        """Make a mixture with other weights from the beginning; the place in each domain is lost."""
        self.start(OTHER_WEIGHTS)
        return self.next_batch()


class HfIterable:
    """datasets.interleave_datasets of iterable datasets, shuffle buffer of 1000. Its resume loses the buffer."""

    name = "HF interleave, iterable"

    def __init__(self, folder: Path, shape: BatchShape) -> None:
        self._folder, self._shape = folder, shape

    def start(self, weights: Sequence[float] = WEIGHTS, state: dict[str, Any] | None = None) -> None:
        """Shuffle every domain through a buffer and interleave."""
        parts = [
            datasets.load_from_disk(self._folder / "hf" / name).to_iterable_dataset(num_shards=4)
            .shuffle(seed=0, buffer_size=1000)
            for name in DOMAINS
        ]  # fmt: skip
        self._mixed = datasets.interleave_datasets(
            parts, probabilities=list(weights), seed=0, stopping_strategy="all_exhausted"
        ).with_format("numpy")
        if state is not None:
            self._mixed.load_state_dict(state)
        self._packer = Packer(iter(self._mixed), self._shape)

    def next_batch(self) -> Batch:
        """Return the next packed batch."""
        return self._packer.next_batch()

    def resume(self) -> Batch:
        """Load the state into a new mixture."""
        self.start(state=self._mixed.state_dict())
        return self.next_batch()

    def change_weights(self) -> Batch:
        """Make a mixture with other weights; the place in each domain is lost."""
        self.start(OTHER_WEIGHTS)
        return self.next_batch()


class Mosaic:
    """streaming.StreamingDataset with one Stream per domain, local shards, read in this process."""

    name = "mosaicml StreamingDataset"

    def __init__(self, folder: Path, shape: BatchShape) -> None:
        self._folder, self._shape = folder, shape

    def start(
        self, weights: Sequence[float] = WEIGHTS, *, state: dict[str, Any] | None = None, num_read: int = 0
    ) -> None:
        """Open the streams with the weights as proportions."""
        streaming = import_streaming()
        streaming.base.util.clean_stale_shared_memory()
        streams = [
            streaming.Stream(local=str(self._folder / "mds" / name), proportion=weight)
            for name, weight in zip(DOMAINS, weights, strict=True)
        ]
        self._dataset = streaming.StreamingDataset(streams=streams, shuffle=True, shuffle_seed=0, batch_size=1)
        if state is not None:
            self._dataset.load_state_dict(state)
        self._packer = Packer(iter(self._dataset), self._shape, num_read=num_read)

    def next_batch(self) -> Batch:
        """Return the next packed batch."""
        return self._packer.next_batch()

    def resume(self) -> Batch:
        """Load the state into a new dataset."""
        num_read = self._packer.num_read
        state = self._dataset.state_dict(num_read, True)
        del self._dataset, self._packer
        self.start(state=state, num_read=num_read)
        return self.next_batch()

    def change_weights(self) -> Batch:
        """Make a dataset with other proportions; the place in each domain is lost."""
        del self._dataset, self._packer
        self.start(OTHER_WEIGHTS)
        return self.next_batch()
