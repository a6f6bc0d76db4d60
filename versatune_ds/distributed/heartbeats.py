"""Heartbeats: every rank shows that it lives; rank 0 logs which one does not, rank 1 does so for rank 0.

A process that is killed closes its connections, and the others fail at once. A machine that loses power, or a process
that is frozen, closes nothing: the others would wait in a collective until its timeout of half an hour, and then report
their own call and not the rank that is missing.

The heartbeats are kept by rank 0's process, or by torchrun on its machine. Where that does not answer any more,
`rank_zero_watch.py` ends the other ranks; where torchrun answers for a frozen rank 0, rank 1 misses its heartbeats.
A rank beats from a thread of Python, so one long call that keeps Python's lock is silence too.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass

from versatune_ds.distributed.rank_zero_watch import WatchedStore
from versatune_ds.distributed.silence import SilenceLimits

logger = logging.getLogger(__name__)

BEAT_SECONDS = 10.0


@dataclass(slots=True)
class _Seen:
    """What was read of a rank last: the beat, when it was first seen, and whether its silence is reported."""

    beat: bytes
    since: float
    is_reported: bool = False

    @property
    def host(self) -> str:
        """Return the name of the rank's machine."""
        return self.beat.decode().partition(" ")[2]


class Heartbeats:
    """Heartbeats of the ranks of a run on a store; `tick` is called by one thread, every second or so.

    Args:
        store: Where the beats are kept.
        rank: This rank.
        world_size: Number of ranks.
        limits: How long a rank may be silent.
        clock: Returns seconds. Clocks of machines are never compared: a rank times changes by its own.
    """

    def __init__(
        self,
        store: WatchedStore,
        *,
        rank: int,
        world_size: int,
        limits: SilenceLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._rank, self._world_size = store, rank, world_size
        self._limits, self._clock = limits, clock
        self._num_beats = 0
        self._next_beat = self._ticked = clock()
        self._seen: dict[int, _Seen] = {}
        self.lost: str | None = None
        """The rank that was silent for too long, in words; None while there is none. On ranks 0 and 1 only."""

    def tick(self) -> None:
        """Beat and read other ranks' beats if it is time; log which ranks became silent or came back.

        Communication: one `set`; on rank 0 one `get` per rank, on the others one. Each every ten seconds.
        """
        now = self._clock()
        self._forgive_pause(now - self._ticked)
        self._ticked = now
        if now < self._next_beat:
            return
        self._next_beat = now + BEAT_SECONDS
        self._num_beats += 1
        self._store.set(_key(self._rank), f"{self._num_beats} {platform.node()}")
        for rank in range(1, self._world_size) if self._rank == 0 else (0,):
            self._look_at(rank, now=now)

    def _forgive_pause(self, seconds: float) -> None:
        """Leave out of every silence what this process itself was stopped for; the others may have been stopped too.

        Example: Slurm suspends a job for an hour. Its ranks continue one after the other, and the first to do so reads
        beats that are an hour old.
        """
        if seconds > BEAT_SECONDS:
            for seen in self._seen.values():
                seen.since += seconds

    def host_of_rank_zero(self) -> str | None:
        """Return the name of rank 0's machine; None before its first beat, and on rank 0."""
        return self._seen[0].host if 0 in self._seen else None

    def _look_at(self, rank: int, *, now: float) -> None:
        """Compare a rank's beat with the one read before."""
        if rank not in self._seen and not self._store.check([_key(rank)]):
            return  # it has not started yet
        beat = self._store.get(_key(rank))
        seen = self._seen.get(rank)
        if seen is None or beat != seen.beat:
            if seen is not None and seen.is_reported and self._rank <= 1:
                logger.warning("rank %d is heard of again after %.0f s", rank, now - seen.since)
            self._seen[rank] = _Seen(beat, now)
            return
        silence = f"rank {rank} on {seen.host} has not been heard of for {now - seen.since:.0f} s"
        if now - seen.since >= self._limits.warn_seconds and not seen.is_reported:
            seen.is_reported = True
            if self._rank > 1:
                return  # rank 1 logs that rank 0 is silent
            logger.warning(
                "%s: its machine is down, or its process is frozen or busy in one long call; %s",
                silence, self._limits.consequence,
            )  # fmt: skip
        lost_seconds = self._limits.lost_seconds
        if lost_seconds is not None and now - seen.since >= lost_seconds and self._rank <= 1:
            self.lost = silence


def _key(rank: int) -> str:
    return f"heartbeat_of_rank_{rank}"
