"""Load the validation examples: each once over all ranks, in fixed rows, in the same number of micro-batches per rank.

Rows are packed once, from lengths, and never change, so the losses of two measurements are paired example by example.
Rows of padding make the number of micro-batches the same on every rank, so that evaluation cannot hang.

Shape legend: **E** validation examples over all domains, **B** rows, **T** tokens per row, **K** domains.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from versatune_ds.data.batch import Batch
from versatune_ds.data.collate import Shards, collate_rows
from versatune_ds.data.order.packing import order_by_place, order_rows_by_cost, pack_all
from versatune_ds.data.order.permutation import domain_key, draw_indices
from versatune_ds.data.order.plan import Placement
from versatune_ds.data.order.supply import check_lengths
from versatune_ds.data.row_slices import row_share, slice_batch, slice_of
from versatune_ds.domains import DomainSet


class ExampleSubset:
    """A fixed part of a domain's examples, read like a complete domain, in the order of the shards.

    It depends only on the run's seed, the domain's name and its size. So the same held-out examples are measured at
    every update and after every resume, and changes between measurements are paired.

    Attributes:
        name: The domain's name.
        num_examples: Examples in the subset.
        indices: int64 [num_examples], rising, in the complete domain. A smaller subset is part of a larger one.
        lengths: int32 [num_examples] tokens of each example.
        loss_lengths: int32 [num_examples] tokens that bear loss.
    """

    def __init__(self, shards: Shards, *, max_examples: int, seed: int) -> None:
        """Choose the examples of a complete domain; of one with fewer than `max_examples`, all are used."""
        count = min(max_examples, shards.num_examples)
        key = domain_key(seed, f"subset of {shards.name}")
        _, indices = draw_indices(key, first_draw=0, count=count, size=max(shards.num_examples, 1))
        self._shards = shards
        self.indices = np.sort(indices)
        self.name = shards.name
        self.num_examples = count
        self.lengths = np.asarray(shards.lengths)[self.indices]
        self.loss_lengths = np.asarray(shards.loss_lengths)[self.indices]

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (input_ids, is_loss) of an example of the subset."""
        return self._shards.read(int(self.indices[index]))


class ValidationLoader:
    """Iterate over this rank's validation micro-batches, each with the example every token belongs to.

    Args:
        shards: Tokenised validation examples, one per domain in the order of `domain_set`.
        domain_set: The run's domains.
        rows_per_micro_batch: Rows one rank evaluates at a time.
        row_tokens: Tokens of a row.
        rank: This process.
        world_size: Number of processes.
        pad_token_id: Token of the padding.
        sequence_parallel: Neighbouring processes that share their rows, with a slice of each.

    Attributes:
        num_examples: Examples over all domains and ranks, E. They are numbered domain by domain.
        example_domain_ids: int64 [E].
        example_num_loss_tokens: int64 [E].
        num_micro_batches: Micro-batches of this and every other rank.

    Raises:
        ValueError: If an example is longer than a row, or shards and domains do not match.
    """

    def __init__(
        self,
        shards: Sequence[Shards],
        *,
        domain_set: DomainSet,
        rows_per_micro_batch: int,
        row_tokens: int,
        rank: int,
        world_size: int,
        pad_token_id: int = 0,
        sequence_parallel: int = 1,
    ) -> None:
        if tuple(shard.name for shard in shards) != domain_set.names:
            raise ValueError(f"validation shards do not match the domains {', '.join(domain_set.names)}, in this order")
        # Pack the examples, and choose the rows of this rank's micro-batches.
        self._shards = shards
        self._pad_token_id = pad_token_id
        self._row_tokens = row_tokens
        self._rows_per_micro_batch = rows_per_micro_batch
        self._placement, self._example_id_E, num_rows = _place_examples(shards, row_tokens=row_tokens)
        self._share = row_share(rank=rank, world_size=world_size, num_slices=sequence_parallel)
        rows_per_micro_step = rows_per_micro_batch * self._share.num_groups
        self.num_micro_batches = -(-num_rows // rows_per_micro_step)
        end = self.num_micro_batches * rows_per_micro_step
        self._first_rows = range(self._share.group * rows_per_micro_batch, end, rows_per_micro_step)
        # Domains and loss tokens in the order of the examples' numbers.
        by_example = np.argsort(self._example_id_E)
        self.num_examples = len(by_example)
        self.example_domain_ids = self._placement.domain_id_E[by_example].astype(np.int64)
        self.example_num_loss_tokens = self._placement.loss_length_E[by_example].astype(np.int64)

    def __iter__(self) -> Iterator[tuple[Batch, torch.Tensor]]:
        """Iterate over (batch, example_ids): int64 [B,T], number of the example of each token, -1 for padding."""
        for first_row in self._first_rows:
            batch = collate_rows(
                self._placement,
                first_row=first_row,
                num_rows=self._rows_per_micro_batch,
                row_tokens=self._row_tokens,
                shards=self._shards,
                pad_token_id=self._pad_token_id,
            )
            yield slice_batch(batch, self._share), slice_of(self._example_ids(first_row), self._share)

    def _example_ids(self, first_row: int) -> torch.Tensor:
        """Return the example of each token of consecutive rows, int64 [B,T]."""
        ids_BT = np.full((self._rows_per_micro_batch, self._row_tokens), -1, dtype=np.int64)
        place = self._placement
        examples = place.rows(first_row, first_row + self._rows_per_micro_batch)
        for e in range(examples.start, examples.stop):
            begin = place.offset_E[e]
            ids_BT[place.row_E[e] - first_row, begin : begin + place.length_E[e]] = self._example_id_E[e]
        return torch.from_numpy(ids_BT)


def _place_examples(shards: Sequence[Shards], *, row_tokens: int) -> tuple[Placement, np.ndarray, int]:
    """Pack the examples of all domains; return their placement, their numbers in row order, and the number of rows.

    Raises:
        ValueError: If an example is empty or longer than a row.
    """
    # Number the examples domain by domain, and check their lengths.
    counts = [shard.num_examples for shard in shards]
    lengths = np.concatenate([np.asarray(shard.lengths) for shard in shards])
    loss_lengths = np.concatenate([np.asarray(shard.loss_lengths) for shard in shards])
    domain_ids = np.repeat(np.arange(len(shards), dtype=np.int32), counts)
    indices = np.concatenate([np.arange(n, dtype=np.int64) for n in counts])
    for shard, count in zip(shards, counts, strict=True):
        what = f"domain {shard.name!r}, validation example"
        check_lengths(np.asarray(shard.lengths), indices=np.arange(count), row_tokens=row_tokens, what=what)
    # Pack them, and sort them by row.
    rows, offsets, num_rows = pack_all(lengths, row_tokens=row_tokens)
    rows = order_rows_by_cost(rows, lengths, num_rows=num_rows)[rows]
    by_row = order_by_place(rows, offsets, num_rows=num_rows, row_tokens=row_tokens)
    placement = Placement(
        domain_id_E=domain_ids[by_row],
        index_E=indices[by_row],
        length_E=lengths[by_row],
        loss_length_E=loss_lengths[by_row],
        row_E=rows[by_row],
        offset_E=offsets[by_row],
    )
    return placement, by_row, num_rows
