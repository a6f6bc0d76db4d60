"""Define a batch, the model's input: the rows of one micro-step on one rank.

Everything is computed on the CPU beforehand, so that nothing waits for the device. Labels are already those of the next
token, positions restart with every example, every token has its domain, and `valid_index` lists the positions that bear
loss, so that the head and the loss skip all others.

Shape legend: **B** rows, **T** tokens per row, **M** entries of valid_index, **S** segments of all rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

IGNORE_INDEX = -100
"""Label of a position that bears no loss."""

VALID_MULTIPLE = 128
"""`valid_index` is padded to a multiple of this, at least one: the tile height of the head's matrix product."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One micro-batch; tensors are int64 unless stated otherwise, on the CPU, pinned if there is a GPU."""

    input_ids: torch.Tensor
    """[B,T]."""
    labels: torch.Tensor
    """[B,T]; labels[b,t] is the target of position t, the token at t+1 if that lies in the same example and bears loss,
    otherwise IGNORE_INDEX. Labels are not shifted again later."""
    positions: torch.Tensor
    """[B,T], from 0 in every example and in the padding."""
    domain_ids: torch.Tensor
    """[B,T]; 0 in the padding, whose labels are all ignored."""
    segment_ids: torch.Tensor
    """[B,T], number of the example within its row; the padding is a segment of its own."""
    valid_index: torch.Tensor
    """[M], flat positions (row * T + t) whose label is not IGNORE_INDEX, rising; padded to a multiple of 128 with an
    ignored position."""
    num_valid: int
    """Entries of valid_index that are not padding."""
    cu_seqlens: torch.Tensor
    """int32 [S+1], flat position at which each segment begins, and B*T; for attention without a mask."""
    longest_segment: int
    """Tokens of the longest segment; a number on the host, so that no layer waits for the device."""
    num_loss_tokens_global: int
    """Loss tokens of the optimizer step over all ranks and micro-steps."""
    row_positions: torch.Tensor | None = None
    """[B,T], positions of the complete rows where this batch is a slice of them (`row_slices.py`), to which cu_seqlens
    and longest_segment then belong; None where rows are complete."""


def padded_valid_index(labels_N: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the positions that bear loss, padded, and their number without padding.

    Args:
        labels_N: int64 [B*T].

    Returns:
        int64 [M] with M a positive multiple of 128, and the number of entries before the padding. The padding repeats
        the first ignored position; there always is one, since the last token of an example has no target.
    """
    is_valid_N = labels_N != IGNORE_INDEX
    valid = np.flatnonzero(is_valid_N)
    padded = np.empty(max(-(-len(valid) // VALID_MULTIPLE), 1) * VALID_MULTIPLE, dtype=np.int64)
    padded[: len(valid)] = valid
    padded[len(valid) :] = int(np.argmin(is_valid_N))
    return padded, len(valid)


def segment_bounds(positions_BT: np.ndarray) -> tuple[np.ndarray, int]:
    """Return where the segments of a micro-batch begin when its rows are laid end to end, and the longest one's length.

    Positions restart at 0 in every example, in the padding, and so in every row: a segment begins where they are 0.
    The number of segments is not padded: torch.compile takes a size that changes as a variable from the second one on,
    and every empty segment would cost a GPU thread blocks that find nothing to do.

    Example: rows 0 1 2 0 1 0 and 0 1 2 3 0 1 begin segments at 0, 3, 5, 6 and 10; the longest has 4 tokens.

    Args:
        positions_BT: int64 [B,T].

    Returns:
        int32 [S+1], the first position of each segment and B*T at the end, and the longest segment in tokens.
    """
    begin_S = np.flatnonzero(positions_BT.reshape(-1) == 0)
    bounds = np.append(begin_S, positions_BT.size).astype(np.int32)
    return bounds, int(np.diff(bounds).max())
