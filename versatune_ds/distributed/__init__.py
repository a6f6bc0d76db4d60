"""Which process this is, and the few collective calls the framework needs, on one process as on many.

The world is a value (`World`), found once from the environment and passed on. Control traffic (decisions, flags, small
sums) goes through gloo on the CPU, so that it never waits for a device.
"""

from versatune_ds.distributed.collectives import (
    any_rank,
    barrier,
    broadcast_text,
    bytes_from_rank_zero,
    check_same_on_all_ranks,
    from_rank_zero,
    run_on_rank_zero,
    sum_over_ranks,
    texts_of_ranks,
)
from versatune_ds.distributed.rendezvous import free_port, join_world, leave_world
from versatune_ds.distributed.world import World

__all__ = [
    "World",
    "any_rank",
    "barrier",
    "broadcast_text",
    "bytes_from_rank_zero",
    "check_same_on_all_ranks",
    "free_port",
    "from_rank_zero",
    "join_world",
    "leave_world",
    "run_on_rank_zero",
    "sum_over_ranks",
    "texts_of_ranks",
]
