"""A rank 0 that disappears without closing its connections is named by the others; a busy one is not."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import platform
import signal
import socket
import sys
import time

import pytest
import torch.distributed as dist

from versatune_ds.distributed import World, failures, free_port, heartbeats, rank_zero_watch
from versatune_ds.distributed.failures import Failure, FailureBoard
from versatune_ds.distributed.rank_zero_watch import RankZeroWatch, WatchedStore
from versatune_ds.distributed.silence import SilenceLimits, silence_limits
from versatune_ds.exit_codes import FAILED_EXIT_CODE
from versatune_ds.log import configure_logging
from versatune_ds.training import worker

WARN, LOST, TICK = 1.0, 2.0, 0.2
"""Seconds of silence until it is logged and until the end, 45 and 300 in a run, and between two looks at it."""


def watch_of(rank, *, local_rank=0, limits=SilenceLimits()):  # noqa: B008
    codes = []
    world = World(rank=rank, world_size=4, local_rank=local_rank)
    return RankZeroWatch(world, host=lambda: "node1", limits=limits, end=codes.append), codes


def test_a_request_that_waits_names_rank_zero_and_its_host_after_45_seconds_and_ends_the_rank_after_300(caplog):
    watch, codes = watch_of(1, local_rank=1)
    with watch.asking():
        for _ in range(44):
            watch.tick()
        assert caplog.messages == []
        for _ in range(45, 300):
            watch.tick()
        (warning,) = caplog.messages
        assert warning.startswith("rank 0 on node1 has not answered for 45 s: its machine is down, its")
        assert "After 300 s of silence (VERSATUNE_LOST_SECONDS) the job ends with exit code 1" in warning
        assert codes == []
        watch.tick()
    assert codes == [FAILED_EXIT_CODE]
    start = f"rank 0 on node1 has not answered for 300 s. Rank 1 on {platform.node()} ends; start the run again"
    assert caplog.messages[1].startswith(start)


def test_a_rank_zero_that_answers_after_a_minute_is_logged_and_ends_nothing(caplog):
    watch, codes = watch_of(2)
    for _ in range(2):
        with watch.asking():
            for _ in range(60):
                watch.tick()
    assert codes == []
    assert caplog.messages[1::2] == ["rank 0 answers again after 60 s"] * 2
    assert len(caplog.messages) == 4


def test_a_pause_of_the_process_itself_during_a_request_does_not_count(caplog, monkeypatch):
    watch, codes = watch_of(1)
    with watch.asking():
        watch.tick()
        with monkeypatch.context() as patch:
            for name in ("monotonic", "time", "perf_counter"):
                an_hour_later = getattr(time, name)() + 3600
                patch.setattr(time, name, lambda now=an_hour_later: now)
            watch.tick()
    assert (codes, caplog.messages) == ([], [])


def test_what_would_be_lost_is_logged_also_where_it_happens_long_after_rank_zero_became_silent(caplog):
    calls = []
    world = World(rank=1, world_size=2, local_rank=0)
    limits = SilenceLimits(lost_seconds=None)
    watch = RankZeroWatch(world, host=lambda: "node1", limits=limits, when_silent=lambda: calls.append(1))
    with watch.asking():
        for _ in range(100):
            watch.tick()
        num_calls = len(calls)
        with watch.asking():
            watch.tick()
    assert len(calls) > num_calls > 0
    assert len(caplog.messages) == 2  # silent, and back


def test_a_silent_rank_zero_is_waited_for_where_the_end_is_switched_off(caplog):
    watch, codes = watch_of(1, limits=silence_limits({"VERSATUNE_LOST_SECONDS": "off"}))
    with watch.asking():
        for _ in range(4000):
            watch.tick()
    assert codes == []
    assert "the other ranks wait as long as it takes" in caplog.messages[0]


def test_a_variable_sets_the_seconds_until_the_end_and_a_wrong_value_is_refused_in_one_line():
    assert silence_limits({}) == SilenceLimits(warn_seconds=45, lost_seconds=300)
    assert silence_limits({"VERSATUNE_LOST_SECONDS": "900"}) == SilenceLimits(warn_seconds=45, lost_seconds=900)
    for value in ("59", "5m", "-1", "inf", "0"):
        with pytest.raises(ValueError, match="at least 60, or off, found") as caught:
            silence_limits({"VERSATUNE_LOST_SECONDS": value})
        assert "\n" not in str(caught.value)


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


def hasten():
    """Let this process miss a silent rank within seconds."""
    failures.silence_limits = lambda environ: SilenceLimits(warn_seconds=WARN, lost_seconds=LOST)
    rank_zero_watch._TICK_SECONDS, heartbeats.BEAT_SECONDS, failures._GRACE_SECONDS = TICK, 0.5, 1.0


def start_ranks(folder, work, *, port=None, environ=(), is_hasty=True):
    """Start two ranks that share a failure board and do `work(rank, board)`; return them once both have it."""
    context, port = multiprocessing.get_context("fork"), port or free_port()

    def be_rank(rank):
        hasten()
        if not is_hasty:
            heartbeats.BEAT_SECONDS = 10.0
        sys.stderr = (folder / f"{rank}.err").open("w", buffering=1)
        configure_logging(rank=rank, world_size=2)
        os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **dict(environ)})
        board = FailureBoard(World(rank=rank, world_size=2, local_rank=rank), has_state=lambda: True)
        (folder / f"{rank}.ready").touch()
        work(rank, board)
        board.close()
        os._exit(0)

    ranks = [context.Process(target=be_rank, args=(rank,)) for rank in range(2)]
    for process in ranks:
        process.start()
    wait_for(lambda: all((folder / f"{rank}.ready").exists() for rank in range(2)))
    time.sleep(0.5)  # rank 1's requests are under way
    return ranks


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)


def end_of(ranks, folder):
    """Return the exit codes and what rank 1 logged."""
    for process in ranks:
        process.join(60)
    return [process.exitcode for process in ranks], (folder / "1.err").read_text()


def freeze_rank_zero(ranks, folder):
    """Stop rank 0, wait for the end of rank 1, and return what `end_of` does."""
    os.kill(ranks[0].pid, signal.SIGSTOP)  # its sockets stay open, as those of a machine without power
    ranks[1].join(60)
    ranks[0].kill()
    codes, log = end_of(ranks, folder)
    assert codes == [-signal.SIGKILL, FAILED_EXIT_CODE]
    return log


def test_a_frozen_rank_zero_is_named_by_the_other_rank_which_ends(tmp_path):
    log = freeze_rank_zero(start_ranks(tmp_path, lambda rank, board: time.sleep(120)), tmp_path)
    assert log.index("[rank 1] WARNING rank 0 on ") < log.index("has not answered for 1 s: its machine is down")
    assert "has not answered for 2 s. Rank 1 on " in log


@pytest.mark.slow
def test_the_error_of_a_rank_is_logged_although_a_frozen_rank_zero_never_learns_of_it(tmp_path):
    def work(rank, board):
        if rank == 0:
            time.sleep(120)
        time.sleep(1.5)  # rank 0 is frozen by now
        world = World(rank=rank, world_size=2, local_rank=rank)
        try:
            raise RuntimeError("CUDA out of memory")
        except RuntimeError as error:
            worker._report(error, world, board)

    log = freeze_rank_zero(start_ranks(tmp_path, work), tmp_path)
    assert log.count("RuntimeError: CUDA out of memory") == 1
    assert log.index("CUDA out of memory") < log.index("has not answered for 2 s. Rank 1 on ")


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["rank 0", "agent"])
def test_a_frozen_rank_zero_is_named_and_rank_one_ends_also_where_torchruns_agent_serves_the_store(tmp_path, victim):
    context, port = multiprocessing.get_context("fork"), free_port()

    def serve():
        store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
        time.sleep(120)
        del store

    agent = context.Process(target=serve)
    agent.start()
    environ = {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    ranks = start_ranks(tmp_path, lambda rank, board: time.sleep(120), port=port, environ=environ)
    if victim == "agent":
        agent.kill()
        ranks[1].join(60)
        ranks[0].kill()
        log = end_of(ranks, tmp_path)[1]
        assert "cannot be asked any more: torchrun on its machine has ended. Rank 1 on " in log
    else:
        log = freeze_rank_zero(ranks, tmp_path)
        assert "has not been heard of for 1 s: its machine is down, or its process is frozen" in log
        assert "it is given up, and this job ends with exit code 1" in log
    assert ranks[1].exitcode == FAILED_EXIT_CODE
    agent.kill()


def shut_newest_connection(port):
    """Break the connection to the store that this process opened last: that of its watch."""
    for fd in sorted((int(name) for name in os.listdir("/proc/self/fd")), reverse=True):
        try:
            with socket.socket(fileno=os.dup(fd)) as connection:
                if connection.getpeername()[1] == port:
                    connection.shutdown(socket.SHUT_RDWR)
                    return
        except OSError:
            continue
    raise AssertionError("no connection to the store")


@pytest.mark.slow
def test_a_rank_whose_connection_breaks_makes_it_again_and_still_learns_of_failures(tmp_path):
    port = free_port()

    def work(rank, board):
        time.sleep(0.5)
        if rank == 1:
            shut_newest_connection(port)
            time.sleep(120)
        time.sleep(3)
        board.post(Failure(rank=0, exit_code=7, text="a fault"))
        board.linger()
        os._exit(7)

    codes, log = end_of(start_ranks(tmp_path, work, port=port), tmp_path)
    assert codes == [7, 7], log
    assert log.count("the connection to rank 0's store broke and is made again") == 1
    assert "its process has ended" not in log


@pytest.mark.slow
def test_neither_a_rank_zero_that_holds_the_interpreters_lock_nor_a_pause_of_the_rank_itself_is_an_alarm(tmp_path):
    def work(rank, board):
        if rank == 0:
            ctypes.PyDLL(None).usleep(2_300_000)  # PyDLL keeps the lock: no thread of Python runs
            time.sleep(4.5)
            return
        end = time.monotonic() + 6
        while time.monotonic() < end:  # a request is under way at nearly every moment
            board._store.check(["nothing"])

    ranks = start_ranks(tmp_path, work, is_hasty=False)
    time.sleep(2.5)
    assert ranks[1].is_alive()
    os.kill(ranks[1].pid, signal.SIGSTOP)
    time.sleep(LOST + 0.2)
    os.kill(ranks[1].pid, signal.SIGCONT)
    assert end_of(ranks, tmp_path) == ([0, 0], "")
