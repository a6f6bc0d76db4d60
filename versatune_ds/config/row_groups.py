"""Check the number of processes that divide something: rows (`train.sequence_parallel`) or weights (`--sharded`)."""

from __future__ import annotations


def check_ranks_divide(*, world_size: int, num_slices: int) -> None:
    """Raise ValueError if the ranks do not divide into groups that share a row."""
    if world_size % num_slices:
        raise ValueError(
            f"train.sequence_parallel: {num_slices} processes share a row, but {world_size} do not divide into groups "
            f"of {num_slices}; start a multiple of {num_slices} (--processes), or use a divisor of {world_size}"
        )


def check_divides_weights(num_processes: int) -> None:
    """Raise ValueError if there is one process, which would have all weights."""
    if num_processes < 2:
        raise ValueError("--sharded divides the weights over processes: expected --processes 2 or more")
