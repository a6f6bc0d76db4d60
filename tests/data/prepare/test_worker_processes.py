"""A function runs in other processes, or here if one is enough."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from versatune_ds.data.prepare.worker_processes import worker_processes


@pytest.mark.parametrize("num_processes", [1, 2])
def test_each_result_belongs_to_its_argument(num_processes):
    with worker_processes(num_processes, function=lambda number: (number**2, os.getpid())) as start:
        waits = [start(number) for number in range(7)]
        results = [wait() for wait in reversed(waits)]
    assert [result for result, _ in reversed(results)] == [0, 1, 4, 9, 16, 25, 36]
    assert ({pid for _, pid in results} == {os.getpid()}) == (num_processes == 1)


def test_with_one_process_a_result_that_nobody_asks_for_is_not_computed():
    computed = []
    with worker_processes(1, function=computed.append) as start:
        wait = start(1)
        start(2)
        assert computed == []
        wait()
    assert computed == [1]


def test_an_error_in_a_process_reaches_this_one():
    with (
        pytest.raises(ZeroDivisionError),
        worker_processes(2, function=lambda number: 1 // number) as start,
    ):
        start(0)()


def test_signals_end_a_process_whatever_its_parent_does_with_them():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with worker_processes(2, function=lambda _: signal.getsignal(signal.SIGTERM)) as start:
            assert start(None)() == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
def test_a_killed_process_is_an_error_with_what_to_do_where_results_are_awaited_and_where_work_is_given():
    advice = r"^data.num_processes: a process that counts rows was killed, .* start again, .* finished blocks are kept$"
    with worker_processes(2, function=lambda _: os._exit(9), what="counts rows") as start:
        wait = start(0)
        with pytest.raises(RuntimeError, match=advice):
            wait()
        with pytest.raises(RuntimeError, match=advice):
            start(1)
