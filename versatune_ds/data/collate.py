"""Turn planned rows into tensors.

The only Python work per example is one read. Tokens are copied once, into memory from which the device can fetch them;
all other columns follow from the plan in one compiled pass.

Shape legend: **B** rows, **T** tokens per row, **E** examples in these rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numba import njit

from versatune_ds.data.batch import IGNORE_INDEX, Batch, padded_valid_index, segment_bounds
from versatune_ds.data.order.plan import Placement


class Shards(Protocol):
    """The tokenised examples of one domain, as the loaders read them."""

    name: str
    lengths: np.ndarray
    """int32 [num_examples], tokens of each example."""
    loss_lengths: np.ndarray
    """int32 [num_examples], tokens of each example that bear loss; the first token never does."""

    @property
    def num_examples(self) -> int:
        """Return the number of examples."""

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return input_ids int32 [length] and is_loss bool [length], true for a token that bears loss as a target."""


@njit(cache=True, nogil=True)
def _fill_columns(
    ids_BT: np.ndarray,
    is_loss_BT: np.ndarray,
    row_E: np.ndarray,
    offset_E: np.ndarray,
    length_E: np.ndarray,
    domain_id_E: np.ndarray,
    labels_BT: np.ndarray,
    positions_BT: np.ndarray,
    domain_ids_BT: np.ndarray,
    segment_ids_BT: np.ndarray,
) -> None:
    """Write labels, positions, domains and segments of examples sorted by row and offset, and of the padding.

    Example: [a b c][d e] in a row of 6, loss on b, c and e gives labels b c - e - -, positions 0 1 2 0 1 0 and
    segments 0 0 0 1 1 2.
    """
    B, T = ids_BT.shape
    e = 0
    for b in range(B):
        # The examples of the row.
        end, segment = 0, 0
        while e < len(row_E) and row_E[e] == b:
            begin = offset_E[e]
            end = begin + length_E[e]
            for t in range(begin, end):
                has_target = t + 1 < end and is_loss_BT[b, t + 1]
                labels_BT[b, t] = ids_BT[b, t + 1] if has_target else IGNORE_INDEX
                positions_BT[b, t] = t - begin
                domain_ids_BT[b, t] = domain_id_E[e]
                segment_ids_BT[b, t] = segment
            segment += 1
            e += 1
        # Its padding: one more segment, without loss.
        for t in range(end, T):
            labels_BT[b, t] = IGNORE_INDEX
            positions_BT[b, t] = t - end
            domain_ids_BT[b, t] = 0
            segment_ids_BT[b, t] = segment


def collate_rows(
    placement: Placement,
    *,
    first_row: int,
    num_rows: int,
    row_tokens: int,
    shards: Sequence[Shards],
    pad_token_id: int,
) -> Batch:
    """Read the examples of consecutive rows and return them as a batch.

    Args:
        placement: Rows of a global batch, all of its loss tokens included.
        first_row: First row of the batch; rows after the last planned one are all padding.
        num_rows: Rows of the batch, B.
        row_tokens: Tokens of a row, T.
        shards: One per domain, in id order.
        pad_token_id: Token of the padding.

    Raises:
        RuntimeError: If the length or the loss tokens of an example differ from those that the plan was made from.
    """
    # Allocate pinned columns, and view them as arrays.
    examples = placement.rows(first_row, first_row + num_rows)
    names = ("input_ids", "labels", "positions", "domain_ids", "segment_ids")
    is_pinned = torch.cuda.is_available()  # so that copies to the GPU do not block
    columns = {name: torch.empty(num_rows, row_tokens, dtype=torch.int64, pin_memory=is_pinned) for name in names}
    ids_BT, labels_BT, positions_BT, domain_ids_BT, segment_ids_BT = (column.numpy() for column in columns.values())
    ids_BT.fill(pad_token_id)
    # Read the examples, then derive the other columns from the plan.
    is_loss_BT = np.zeros((num_rows, row_tokens), dtype=np.bool_)
    row_E = placement.row_E[examples] - first_row
    begin_E = row_E * row_tokens + placement.offset_E[examples]
    _read_examples(placement, examples, begin_E, shards=shards, ids=ids_BT.reshape(-1), is_loss=is_loss_BT.reshape(-1))
    _fill_columns(
        ids_BT, is_loss_BT, row_E, placement.offset_E[examples], placement.length_E[examples],
        placement.domain_id_E[examples], labels_BT, positions_BT, domain_ids_BT, segment_ids_BT,
    )  # fmt: skip
    # Positions that bear loss, which must be as many as planned.
    valid_index, num_valid = padded_valid_index(labels_BT.reshape(-1))
    _check_loss(placement, examples, labels_BT, num_valid, first_row=first_row, shards=shards)
    valid_index_M = torch.from_numpy(valid_index)
    # Where the examples begin and end, for attention.
    cu_seqlens, longest_segment = segment_bounds(positions_BT)
    cu_seqlens_S = torch.from_numpy(cu_seqlens)
    return Batch(
        **columns,
        valid_index=valid_index_M.pin_memory() if is_pinned else valid_index_M,
        num_valid=num_valid,
        cu_seqlens=cu_seqlens_S.pin_memory() if is_pinned else cu_seqlens_S,
        longest_segment=longest_segment,
        num_loss_tokens_global=int(placement.loss_length_E.sum(dtype=np.int64)),
    )


def _read_examples(
    placement: Placement,
    examples: slice,
    begin_E: np.ndarray,
    *,
    shards: Sequence[Shards],
    ids: np.ndarray,
    is_loss: np.ndarray,
) -> None:
    """Copy tokens and loss marks of examples to their places in flat arrays [B*T]."""
    columns = (placement.domain_id_E, placement.index_E, placement.length_E)
    for domain_id, index, length, begin in zip(*(c[examples].tolist() for c in columns), begin_E.tolist(), strict=True):
        input_ids, bears_loss = shards[domain_id].read(index)
        if len(input_ids) != length:
            raise RuntimeError(
                f"domain {shards[domain_id].name!r}, example {index}: {len(input_ids)} tokens, expected {length} as in "
                "the index; the shards are corrupt, prepare them again"
            )
        ids[begin : begin + length] = input_ids
        is_loss[begin : begin + length] = bears_loss


def _check_loss(
    placement: Placement,
    examples: slice,
    labels_BT: np.ndarray,
    num_valid: int,
    *,
    first_row: int,
    shards: Sequence[Shards],
) -> None:
    """Raise RuntimeError, with the example, if the labels do not match the plan: the loss would be scaled wrongly."""
    if num_valid == int(placement.loss_length_E[examples].sum()):
        return
    for e in range(examples.start, examples.stop):
        row, begin = placement.row_E[e] - first_row, placement.offset_E[e]
        found = int((labels_BT[row, begin : begin + placement.length_E[e]] != IGNORE_INDEX).sum())
        if found != placement.loss_length_E[e]:
            name = shards[placement.domain_id_E[e]].name
            raise RuntimeError(
                f"domain {name!r}, example {placement.index_E[e]}: {found} tokens bear loss, expected "
                f"{placement.loss_length_E[e]} as in the index; the shards are corrupt, prepare them again"
            )
