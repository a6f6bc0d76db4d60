"""Cut packed rows into slices, so that neighbouring ranks share a row (`train.sequence_parallel`).

With N slices, ranks 0..N-1 form the first group, the next N the second. A group takes the same rows through the model;
its rank i has tokens i*T/N to (i+1)*T/N of each. Rows are read, labelled and checked as a whole before they are cut, so
the label of a slice's last token is the first token of the next slice, and examples keep their positions.

    4 ranks, 2 slices: ranks 0 and 1 share rows 0, 2, ... and ranks 2 and 3 rows 1, 3, ...
    a row of 6 with examples [a b c d][e f]: labels b c d - f - are cut into b c d and - f -

Shape legend: **B** rows, **T** tokens per row, **N** slices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from versatune_ds.config.row_groups import check_ranks_divide
from versatune_ds.data.batch import Batch, padded_valid_index


@dataclass(frozen=True, slots=True, kw_only=True)
class RowShare:
    """Which rows of a batch a rank takes, and which slice of each."""

    group: int
    """Number of the rank's group; groups are to rows what ranks are where rows are not cut."""
    num_groups: int
    slice_index: int = 0
    num_slices: int = 1


def row_share(*, rank: int, world_size: int, num_slices: int) -> RowShare:
    """Return a rank's share of the rows.

    Raises:
        ValueError: If the ranks do not divide into groups.
    """
    check_ranks_divide(world_size=world_size, num_slices=num_slices)
    group, slice_index = divmod(rank, num_slices)
    return RowShare(group=group, num_groups=world_size // num_slices, slice_index=slice_index, num_slices=num_slices)


def slice_of(values_BT: torch.Tensor, share: RowShare) -> torch.Tensor:
    """Return a rank's slice of rows, [B, T/N], contiguous, and pinned where the rows are."""
    part = values_BT.chunk(share.num_slices, dim=1)[share.slice_index].contiguous()
    return part.pin_memory() if values_BT.is_pinned() and not part.is_pinned() else part


def slice_batch(batch: Batch, share: RowShare) -> Batch:
    """Return a rank's slice of a batch of complete rows.

    Where examples begin and end stays that of the complete rows: attention sees those (`model/sequence_parallel.py`).
    """
    if share.num_slices == 1:
        return batch
    names = ("input_ids", "labels", "positions", "domain_ids", "segment_ids")
    columns = {name: slice_of(getattr(batch, name), share) for name in names}
    valid_index, num_valid = padded_valid_index(columns["labels"].reshape(-1).numpy())
    valid_index_M = torch.from_numpy(valid_index)
    return replace(
        batch,
        **columns,
        valid_index=valid_index_M.pin_memory() if batch.valid_index.is_pinned() else valid_index_M,
        num_valid=num_valid,
        row_positions=batch.positions,
    )
