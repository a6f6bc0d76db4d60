"""Check that the processes of a run divide into groups that share a row (`train.sequence_parallel`)."""

from __future__ import annotations


def check_ranks_divide(*, world_size: int, num_slices: int) -> None:
    """Raise ValueError if the ranks do not divide into groups that share a row."""
    if world_size % num_slices:
        raise ValueError(
            f"train.sequence_parallel: {num_slices} processes share a row, but {world_size} do not divide into groups "
            f"of {num_slices}; start a multiple of {num_slices} (--processes), or use a divisor of {world_size}"
        )
