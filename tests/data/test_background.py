"""Calls run in order in the background, and closing never waits forever."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future

import pytest

from versatune_ds.data.background import BackgroundThread


def busy_thread() -> tuple[BackgroundThread, threading.Event, Future]:
    """Return a thread that runs a call until the event is set, and the call's future."""
    thread, is_running, go = BackgroundThread(name="test"), threading.Event(), threading.Event()
    future = thread.submit(lambda: is_running.set() or go.wait())
    assert is_running.wait(timeout=10)
    return thread, go, future


def test_queued_calls_run_in_order():
    thread, seen = BackgroundThread(name="test"), []
    futures = [thread.submit(lambda i=i: seen.append(i) or i) for i in range(20)]
    assert [future.result() for future in futures] == seen == list(range(20))
    thread.close()


def test_closing_cancels_the_queued_calls():
    (thread, go, running), seen = busy_thread(), []
    waiting = thread.submit(lambda: seen.append(1))
    threading.Timer(0.1, go.set).start()
    thread.close()
    assert running.result() is True
    assert waiting.cancelled()
    assert seen == []


def test_closing_abandons_a_call_that_hangs(caplog: pytest.LogCaptureFixture):
    thread, go, _ = busy_thread()
    started = time.monotonic()
    thread.close(timeout_seconds=0.05)
    assert time.monotonic() - started < 5
    assert "thread test: a call still runs after 0.05 s; not waiting longer" in caplog.text
    go.set()


def test_nothing_runs_after_closing():
    thread = BackgroundThread(name="test")
    thread.close()
    with pytest.raises(RuntimeError, match="thread test: a call was queued after close"):
        thread.submit(lambda: None)
