"""Describe the complete packed rows of a micro-batch to attention layers that see only slices of them.

Shape legend: **B** rows, **T** tokens per row, **S** segments: examples, and the padding of each row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

SEQUENCE_PARALLEL_NAMES = {"sdpa": "versatune_slices_sdpa", "varlen": "versatune_slices_varlen"}
"""Implementation of attention on complete rows -> its name over slices in transformers' interface."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedRows:
    """Where the examples of complete rows lie; one object serves all layers of a forward pass."""

    positions_BT: torch.Tensor
    """int64, from 0 in every example and in the padding."""
    bounds: dict[str, Any]
    """What variable-length kernels need: see `attention_arguments`."""
    group: Any = None
    """Process group of the ranks that share the rows; None where this rank has them complete."""
    _masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def mask(self, window: int | None) -> torch.Tensor:
        """Return which earlier positions of its example each position sees, bool [B,1,T,T]; computed once a window.

        Args:
            window: Positions that one sees, itself included; None for all before it.
        """
        if window not in self._masks:
            segment_BT = (self.positions_BT == 0).cumsum(dim=1)
            place_T = torch.arange(segment_BT.shape[1], device=segment_BT.device)
            distance_TT = place_T[:, None] - place_T[None, :]
            is_seen_TT = (distance_TT >= 0) if window is None else (distance_TT >= 0) & (distance_TT < window)
            is_same_BTT = segment_BT[:, :, None] == segment_BT[:, None, :]
            self._masks[window] = (is_same_BTT & is_seen_TT)[:, None]
        return self._masks[window]


def num_repeats(num_heads: int, *, num_query_heads: int, num_ranks: int) -> int:
    """Return how often key and value heads are repeated, so that the ranks divide them: the fewest times.

    Example: 8 query heads, 2 key heads, 4 ranks: each key head twice, so that every rank has 1 for its 2 query heads.
    """
    for repeats in range(1, num_query_heads // num_heads + 1):
        if num_heads * repeats % num_ranks == 0 and num_query_heads % (num_heads * repeats) == 0:
            return repeats
    raise ValueError(f"train.sequence_parallel: {num_ranks} does not divide the {num_query_heads} attention heads")
