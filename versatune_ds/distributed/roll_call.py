"""Roll call before the process group is made: log which ranks have joined and which have not, while others wait.

A rank that is lost before it has joined leaves no trace: no connection of it is closed, and no heartbeat of it is
missed. The others would wait in silence for half an hour, and then report a collective that timed out.
"""

from __future__ import annotations

import logging
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch.distributed as dist

from versatune_ds.distributed.world import World

logger = logging.getLogger(__name__)

LOG_SECONDS = 30.0
"""Between two lines that are logged while ranks wait."""
_POLL_SECONDS = 0.05


def join_roll_call(
    world: World, store: dist.Store, *, limit_seconds: float, clock: Callable[[], float] = time.monotonic
) -> None:
    """Add this rank to the roll call; rank 0 waits until all ranks have, and logs every 30 s which have not.

    The others return at once: they wait for rank 0 when the process group is made.
    Communication: one `set`; on rank 0 one `check` of all ranks, at most twenty times a second.

    Args:
        world: This process's rank and the number of ranks.
        store: Where the ranks meet before there is a process group.
        limit_seconds: How long rank 0 waits.
        clock: Returns seconds.

    Raises:
        RuntimeError: On rank 0, if a rank has not joined by then.
    """
    store.set(_key(world.rank), platform.node())
    if not world.is_rank_zero:
        return
    keys = [_key(rank) for rank in range(world.world_size)]
    began = next_log = clock()
    while not store.check(keys):
        seconds = clock() - began
        if seconds >= limit_seconds:
            raise RuntimeError(
                f"given up after {seconds:.0f} s: {_missing_line(world, store)}. See why there, and start again"
            )
        if clock() - next_log >= LOG_SECONDS:
            next_log = clock()
            logger.warning(
                "waiting for %.0f s: %s. The job is given up after %.0f s", seconds, _missing_line(world, store),
                limit_seconds,
            )  # fmt: skip
        time.sleep(_POLL_SECONDS)
    if next_log > began:
        logger.warning("all %d ranks have joined after %.0f s", world.world_size, clock() - began)


def _missing_line(world: World, store: dist.Store) -> str:
    """Return which ranks have not joined, and which have on which machine."""
    hosts = {rank: store.get(_key(rank)).decode() for rank in range(world.world_size) if store.check([_key(rank)])}
    missing = [rank for rank in range(world.world_size) if rank not in hosts]
    verb = "has" if len(missing) == 1 else "have"
    found = f"{len(missing)} of {world.world_size} ranks {verb} not joined, {in_ranges(missing)}"
    return f"{found}; joined: {in_words(hosts)}"


def in_words(hosts: Mapping[int, str]) -> str:
    """Return the ranks of each machine: `0-3 on node0, 4 and 6-7 on node1`.

    Args:
        hosts: {rank: name of its machine}.
    """
    ranks_by_host: dict[str, list[int]] = {}
    for rank in sorted(hosts):
        ranks_by_host.setdefault(hosts[rank], []).append(rank)
    return ", ".join(f"{in_ranges(ranks)} on {host}" for host, ranks in ranks_by_host.items())


def in_ranges(ranks: Sequence[int]) -> str:
    """Return ascending numbers as ranges: [0, 1, 2, 5, 7, 8] -> `0-2, 5 and 7-8`."""
    spans: list[list[int]] = []
    for rank in ranks:
        if spans and rank == spans[-1][1] + 1:
            spans[-1][1] = rank
        else:
            spans.append([rank, rank])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in spans]
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


@contextmanager
def logging_the_wait_for_rank_zero(place: str, *, is_logged: bool) -> Iterator[None]:
    """Log every 30 s, while this rank connects to rank 0's store, that it still does.

    Args:
        place: Address and port of the store.
        is_logged: Whether this is a rank that logs; one a machine is enough.
    """
    connected = threading.Event()

    def log() -> None:
        began = time.monotonic()
        while not connected.wait(LOG_SECONDS):
            logger.warning(
                "waiting for rank 0 for %.0f s: nothing answers at %s. Its process has not started or has ended, or "
                "the network to it is cut", time.monotonic() - began, place,
            )  # fmt: skip

    if is_logged:
        threading.Thread(target=log, name="versatune-connect", daemon=True).start()
    try:
        yield
    finally:
        connected.set()


def _key(rank: int) -> str:
    return f"host_of_rank_{rank}"
