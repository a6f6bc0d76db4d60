"""A rank 0 that disappears without closing its connections is named by the others; a busy one is not."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import platform
import signal
import sys
import time

import pytest
import torch.distributed as dist

from versatune_ds.distributed import World, free_port, rank_zero_watch
from versatune_ds.distributed.failures import FailureBoard
from versatune_ds.distributed.rank_zero_watch import RankZeroWatch, WatchedStore
from versatune_ds.exit_codes import FAILED_EXIT_CODE
from versatune_ds.log import configure_logging

LIMIT, TICK = 1.0, 0.2
"""Seconds of silence, 45 in a run, and between two looks at it."""


def watch_of(rank, *, local_rank=0):
    codes = []
    world = World(rank=rank, world_size=4, local_rank=local_rank)
    return RankZeroWatch(world, host=lambda: "node1", end=codes.append), codes


def test_a_request_that_waits_for_45_seconds_names_rank_zero_and_its_host_and_ends_the_rank(caplog):
    watch, codes = watch_of(1, local_rank=1)
    with watch.asking():
        for _ in range(44):
            watch.tick()
        assert (codes, caplog.messages) == ([], [])
        watch.tick()
    assert codes == [FAILED_EXIT_CODE]
    (message,) = caplog.messages
    assert message.startswith("rank 0 on node1 has not answered for 45 s: its machine is down, its process is frozen")
    assert f"Rank 1 on {platform.node()} ends; start the run again to resume" in message


def test_requests_that_are_answered_never_add_up():
    watch, codes = watch_of(1)
    store = WatchedStore(dist.HashStore(), watch=watch)
    for i in range(100):
        with watch.asking():
            watch.tick()
        store.set("key", str(i))
        assert store.get("key") == str(i).encode()
        watch.tick()
    assert codes == []


@pytest.mark.parametrize(("rank", "local_rank", "num_lines"), [(1, 1, 1), (2, 0, 1), (3, 1, 0)])
def test_one_rank_of_each_machine_logs_and_every_rank_ends(caplog, rank, local_rank, num_lines):
    watch, codes = watch_of(rank, local_rank=local_rank)
    watch.end_without_rank_zero("is gone")
    assert (codes, len(caplog.messages)) == ([FAILED_EXIT_CODE], num_lines)


def start_ranks(folder, work):
    """Start two ranks that share a failure board, and wait until both have it; return them."""
    context, port = multiprocessing.get_context("fork"), free_port()

    def be_rank(rank):
        rank_zero_watch.SILENT_SECONDS, rank_zero_watch._TICK_SECONDS = LIMIT, TICK
        sys.stderr = (folder / f"{rank}.err").open("w", buffering=1)
        configure_logging(rank=rank, world_size=2)
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        board = FailureBoard(World(rank=rank, world_size=2, local_rank=rank), has_state=lambda: True)
        (folder / f"{rank}.ready").touch()
        work(rank)
        board.close()
        os._exit(0)

    ranks = [context.Process(target=be_rank, args=(rank,)) for rank in range(2)]
    for process in ranks:
        process.start()
    end = time.monotonic() + 60
    while not all((folder / f"{rank}.ready").exists() for rank in range(2)) and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.5)  # rank 1's requests are under way
    return ranks


def end_of(ranks, folder):
    """Return the exit codes and what rank 1 logged."""
    for process in ranks:
        process.join(60)
    return [process.exitcode for process in ranks], (folder / "1.err").read_text()


def test_a_frozen_rank_zero_is_named_by_the_other_rank_which_ends(tmp_path):
    ranks = start_ranks(tmp_path, lambda rank: time.sleep(120))
    os.kill(ranks[0].pid, signal.SIGSTOP)  # its sockets stay open, as those of a machine without power
    ranks[1].join(60)
    ranks[0].kill()
    codes, log = end_of(ranks, tmp_path)
    assert codes == [-signal.SIGKILL, FAILED_EXIT_CODE]
    assert "[rank 1] ERROR rank 0 on " in log
    assert "has not answered for 1 s" in log


def test_neither_a_rank_zero_that_holds_the_interpreters_lock_nor_a_pause_of_the_rank_itself_is_an_alarm(tmp_path):
    def work(rank):
        if rank == 0:
            ctypes.PyDLL(None).usleep(1_300_000)  # PyDLL keeps the lock: no thread of Python runs
        time.sleep(1.5)

    ranks = start_ranks(tmp_path, work)
    time.sleep(1)
    os.kill(ranks[1].pid, signal.SIGSTOP)
    time.sleep(LIMIT)
    os.kill(ranks[1].pid, signal.SIGCONT)
    assert end_of(ranks, tmp_path) == ([0, 0], "")
