"""Log that rank 0's store does not answer, and end this rank where it stays silent: it is down, frozen or cut off.

A request to a machine that disappeared waits for half an hour, and so does a collective. A thread counts the seconds
that a request waits; the limits are in `silence.py`. The store is served by a native thread, which answers also while
rank 0 saves, compiles or holds Python's lock, so that a busy rank 0 is not taken for one that is gone.
"""

from __future__ import annotations

import logging
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch.distributed as dist

from versatune_ds.distributed.silence import SilenceLimits
from versatune_ds.distributed.world import World
from versatune_ds.exit_codes import FAILED_EXIT_CODE

logger = logging.getLogger(__name__)

_TICK_SECONDS = 1.0


@dataclass(eq=False, slots=True)
class _Request:
    """A request that waits for its answer."""

    num_ticks: int = 0

    @property
    def seconds(self) -> float:
        """Return how long it has waited."""
        return self.num_ticks * _TICK_SECONDS


class RankZeroWatch:
    """Count how long requests to rank 0 wait; log when one waits long, and end this process when it waits too long.

    Seconds are counted in ticks of this process and not read from a clock: after a pause of this process itself (a
    suspended machine, SIGSTOP) an answer that has arrived meanwhile is read first.

    Args:
        world: This process's place; rank 0 is never ended.
        host: Returns the host of rank 0.
        limits: How long rank 0 may be silent.
        when_silent: Called every second while it is silent, and before the end: logs what else would be lost.
        end: Ends this process.
    """

    def __init__(
        self,
        world: World,
        *,
        host: Callable[[], str],
        limits: SilenceLimits,
        when_silent: Callable[[], None] = lambda: None,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self._world, self._host, self._limits = world, host, limits
        self._when_silent, self._end = when_silent, end
        self._requests: set[_Request] = set()
        self._reported: _Request | None = None
        """The request whose silence is logged."""

    def start(self) -> None:
        """Start the thread that counts; it ends with the process."""
        if not self._world.is_rank_zero:
            threading.Thread(target=self._count, name="versatune-rank-zero", daemon=True).start()

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Mark that a request to rank 0 is under way."""
        request = _Request()
        self._requests.add(request)
        try:
            yield
        finally:
            self._requests.remove(request)
            if request is self._reported:
                self._reported = None
                if self._is_first_of_machine:
                    logger.warning("rank 0 answers again after %.0f s", request.seconds)

    def tick(self) -> None:
        """Count one second; log if a request waits long, and end this process if it has waited too long."""
        lost_seconds = self._limits.lost_seconds
        for request in list(self._requests):
            request.num_ticks += 1
            if request.seconds >= self._limits.warn_seconds:
                self._report(request)
                self._when_silent()
            if lost_seconds is not None and request.seconds >= lost_seconds:
                self.end_without_rank_zero(f"has not answered for {request.seconds:.0f} s")
                return

    def _report(self, request: _Request) -> None:
        """Log that rank 0 is silent, once a silence and machine."""
        if self._reported is not None:
            return
        self._reported = request
        if self._is_first_of_machine:
            logger.warning(
                "rank 0 on %s has not answered for %.0f s: its machine is down, its process is frozen, or the network "
                "to it is cut; %s", self._host(), request.seconds, self._limits.consequence,
            )  # fmt: skip

    @property
    def _is_first_of_machine(self) -> bool:
        return self._world.rank == 1 or self._world.local_rank == 0

    def end_without_rank_zero(self, what: str) -> None:
        """Log that rank 0 is gone, once a machine, and end this process; the last complete checkpoint remains."""
        self._when_silent()
        if self._is_first_of_machine:
            logger.error(
                "rank 0 on %s %s. Rank %d on %s ends; start the run again to resume from its last checkpoint",
                self._host(), what, self._world.rank, platform.node(),
            )  # fmt: skip
        logging.shutdown()
        self._end(FAILED_EXIT_CODE)

    def _count(self) -> None:
        while True:
            time.sleep(_TICK_SECONDS)
            self.tick()


class WatchedStore:
    """A store on rank 0 whose every request is counted by a watch."""

    def __init__(self, store: dist.Store, *, watch: RankZeroWatch) -> None:
        self._store, self._watch = store, watch

    def set(self, key: str, value: str) -> None:
        """Set the value of a key."""
        with self._watch.asking():
            self._store.set(key, value)

    def compare_set(self, key: str, expected: str, value: str) -> bytes:
        """Set the value of a key if it is the expected one; return its value."""
        with self._watch.asking():
            return self._store.compare_set(key, expected, value)

    def get(self, key: str) -> bytes:
        """Return the value of a key that is set."""
        with self._watch.asking():
            return self._store.get(key)

    def check(self, keys: list[str]) -> bool:
        """Return whether all keys are set."""
        with self._watch.asking():
            return self._store.check(keys)

    def add(self, key: str, number: int) -> int:
        """Add to a number and return the sum."""
        with self._watch.asking():
            return self._store.add(key, number)
