"""Share the first failure among all ranks, so that they exit at once, with its exit code and without further errors.

A rank that fails inside a step leaves the others in a collective that it never joins. They would wait, or report a
closed connection, which hides the reason. So the first rank that fails posts its failure on a board: a store beside the
process group's, available before the group is. Every other rank watches it, and exits quietly once it sees a failure.
Where rank 0, which has the board, is gone without a failure, the others log that and exit (`rank_zero_watch.py`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch.distributed as dist

from versatune_ds.distributed.heartbeats import Heartbeats
from versatune_ds.distributed.rank_zero_watch import RankZeroWatch, WatchedStore
from versatune_ds.distributed.rendezvous import (
    connect_store,
    is_agent_store,
    is_store_host,
    provide_rendezvous,
    reconnect_store,
)
from versatune_ds.distributed.silence import silence_limits
from versatune_ds.distributed.world import World
from versatune_ds.exit_codes import FAILED_EXIT_CODE

logger = logging.getLogger(__name__)

_FIRST, _NUM_SEEN, _NUM_LEFT = "first_failure", "num_seen", "num_left"
_POLL_SECONDS = 0.25
_POLLS_PER_SECOND = 1000.0
"""Most looks at the board by all ranks together: rank 0, which answers them, also trains."""
_GRACE_SECONDS = 15.0
"""How long a rank that trains may take to notice by itself that another one is gone, and to close its files."""
_GRACE_AT_START_SECONDS = 1.0
_LINGER_SECONDS = 3.0
"""How long an exiting rank waits until the others have seen the reason."""
_RECONNECT_SECONDS = 1.0
"""Pause before a connection that broke is made again."""
_SAME_SECONDS = 1.0
"""How long another rank waits for rank 0 to find the same mistake, which rank 0 then reports alone."""


class RankZeroError(RuntimeError):
    """Rank 0 failed while this rank waited for it; rank 0 reports the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a rank ends."""

    rank: int
    exit_code: int
    text: str
    is_rank_zeros: bool = False
    """Whether it only follows from rank 0's failure (`RankZeroError`)."""

    @classmethod
    def from_json(cls, text: bytes | str) -> Failure:
        """Return the failure of an entry on the board."""
        return cls(**json.loads(text))


class FailureBoard:
    """Board on which the ranks share the first failure; it does nothing in a world of one.

    Args:
        has_state: Returns whether this process trains, and so has records to close before it ends.
        before_exit: Called before this process is ended from here, because it does not end by itself.

    Raises:
        ValueError: If the address of rank 0 is not known, or VERSATUNE_LOST_SECONDS is no limit.
    """

    def __init__(
        self, world: World, *, has_state: Callable[[], bool], before_exit: Callable[[], None] = lambda: None
    ) -> None:
        self._world = world
        self._has_state, self._before_exit = has_state, before_exit
        self._seen: Failure | None = None
        self._is_counted = False
        self._ended = threading.Event()
        self._store: WatchedStore | None = None
        self._heartbeats: Heartbeats | None = None
        self._limits = silence_limits(os.environ)
        self._report: Callable[[], None] | None = None
        """Reports this rank's failure; None without one, or once it is reported."""
        self._rank_zero = RankZeroWatch(
            world, host=self._host_of_rank_zero, limits=self._limits, when_silent=self.report_once
        )
        if world.world_size > 1:
            provide_rendezvous(world)
            self._store = WatchedStore(connect_store(is_host=is_store_host(world), world=world), watch=self._rank_zero)
            self._rank_zero.start()
            threading.Thread(target=self._watch, name="versatune-failures", daemon=True).start()

    def post(self, failure: Failure, *, report: Callable[[], None] = lambda: None) -> Failure:
        """Post this rank's failure; return the first one, which may be another rank's.

        A failure that only follows from rank 0's waits for rank 0 to post first.

        Args:
            failure: Why this rank ends.
            report: Reports it; `report_once` calls it, and so does the watch of rank 0 where that does not answer.
        """
        self._report = report
        self._ended.set()  # this process exits by itself now
        if self._store is None:
            return failure
        if failure.is_rank_zeros:
            self._wait_until(lambda: self._store.check([_FIRST]), seconds=_LINGER_SECONDS)
        text = json.dumps(asdict(failure))
        with contextlib.suppress(RuntimeError):  # rank 0, which has the board, is gone
            self._store.set(_key(failure.rank), text)
            self._seen = Failure.from_json(self._store.compare_set(_FIRST, "", text))
        return self._seen or failure

    def is_mine_to_report(self, failure: Failure, first: Failure) -> bool:
        """Return whether this rank reports its failure: the first rank does, and rank 0 where it found the same."""
        if failure.text != first.text:
            return failure.rank == first.rank
        if self._world.is_rank_zero:
            return True
        self._wait_until(lambda: self._store.check([_key(0)]), seconds=_SAME_SECONDS)
        with contextlib.suppress(RuntimeError):
            if self._store.check([_key(0)]) and Failure.from_json(self._store.get(_key(0))).text == failure.text:
                return False
        return failure.rank == first.rank

    def report_once(self) -> None:
        """Report this rank's failure, if there is one and it is not reported yet."""
        report, self._report = self._report, None
        if report is not None:
            report()

    def leave_report_to_others(self) -> None:
        """Do not report this rank's failure: another rank's was first."""
        self._report = None

    def linger(self) -> None:
        """Wait briefly until all ranks have seen the failure: the board ends with rank 0."""
        self._count_as_seen()
        if self._store is not None:
            size = self._world.world_size
            self._wait_until(lambda: self._store.add(_NUM_SEEN, 0) >= size, seconds=_LINGER_SECONDS)

    def close(self) -> None:
        """Stop watching; rank 0 waits until all have, since the board ends with it."""
        self._ended.set()
        if self._store is None:
            return
        with contextlib.suppress(RuntimeError):
            self._store.add(_NUM_LEFT, 1)
        if self._world.is_rank_zero:
            size = self._world.world_size
            self._wait_until(lambda: self._store.add(_NUM_LEFT, 0) >= size, seconds=_LINGER_SECONDS)

    def _watch(self) -> None:
        """Poll the board for a failure, or its end, then end this process if it does not by itself; beat meanwhile."""
        connection: dist.Store | None = None
        while self._seen is None and not self._ended.is_set():
            try:
                if connection is None:
                    connection = connect_store(is_host=False)
                self._seen = self._poll(WatchedStore(connection, watch=self._rank_zero))
            except RuntimeError as error:  # the connection is closed
                if self._ended.wait(_RECONNECT_SECONDS):
                    return
                connection = reconnect_store()
                if connection is None:
                    self._end_without_board()
                    return
                logger.warning("the connection to rank 0's store broke and is made again: %s", _first_line(error))
        if self._seen is None:
            return
        self._count_as_seen()
        if self._ended.wait(_GRACE_SECONDS if self._has_state() else _GRACE_AT_START_SECONDS):
            return
        with contextlib.suppress(Exception):
            self._before_exit()
        logging.shutdown()
        os._exit(self._seen.exit_code)

    def _poll(self, store: WatchedStore) -> Failure | None:
        """Return the first failure once there is one; None once this process ends by itself.

        Raises:
            RuntimeError: If the connection is closed.
        """
        world = self._world
        self._heartbeats = Heartbeats(store, rank=world.rank, world_size=world.world_size, limits=self._limits)
        while not store.check([_FIRST]):
            self._heartbeats.tick()
            if self._heartbeats.lost is not None:
                self._give_up(self._heartbeats.lost, store)
                break
            if self._ended.wait(max(_POLL_SECONDS, world.world_size / _POLLS_PER_SECOND)):
                return None
        return Failure.from_json(store.get(_FIRST))

    def _end_without_board(self) -> None:
        """End this process if it does not by itself: nothing serves the board any more."""
        if self._world.is_rank_zero or self._ended.wait(_GRACE_SECONDS):
            return
        if is_agent_store():
            self._rank_zero.end_without_rank_zero("cannot be asked any more: torchrun on its machine has ended")
        else:
            self._rank_zero.end_without_rank_zero("has closed its connections: its process has ended")

    def _host_of_rank_zero(self) -> str:
        """Return the name of rank 0's machine, as it reported or, before that, as the launcher calls it."""
        host = None if self._heartbeats is None else self._heartbeats.host_of_rank_zero()
        return host or os.environ["MASTER_ADDR"]

    def _give_up(self, silence: str, store: WatchedStore) -> None:
        """Post that a rank is gone: those that wait for it in a collective would wait for long."""
        logger.error(
            "%s: it is given up, and this job ends with exit code %d; the last complete checkpoint is unchanged, start "
            "the job again to resume from it", silence, FAILED_EXIT_CODE,
        )  # fmt: skip
        failure = Failure(rank=self._world.rank, exit_code=FAILED_EXIT_CODE, text=silence)
        store.compare_set(_FIRST, "", json.dumps(asdict(failure)))

    def _count_as_seen(self) -> None:
        if self._store is not None and not self._is_counted:
            self._is_counted = True
            with contextlib.suppress(RuntimeError):
                self._store.add(_NUM_SEEN, 1)

    def _wait_until(self, condition: Callable[[], bool], *, seconds: float) -> None:
        """Wait until a condition of the board is true, at most some seconds; not at all where the board is gone."""
        end = time.monotonic() + seconds
        with contextlib.suppress(RuntimeError):
            while not condition() and time.monotonic() < end:
                time.sleep(0.02)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _key(rank: int) -> str:
    return f"failure_of_rank_{rank}"
