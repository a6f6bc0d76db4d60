"""Run calls one after another in one background thread.

The one idea: unlike an executor's, the thread is a daemon, so that a read that hangs on a network disk cannot keep a
failing run from exiting.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class BackgroundThread:
    """Run calls in order; a failed one fails all that follow, since each builds on the one before.

    Args:
        name: Name of the thread.
    """

    def __init__(self, *, name: str) -> None:
        self._name = name
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        """Queue a call and return the future of its result. The thread starts with the first call."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        future: Future[Any] = Future()
        self._calls.put((call, future))
        return future

    def close(self) -> None:
        """Let the calls already queued finish, and end the thread."""
        if self._thread is not None:
            self._calls.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        """Serve calls until told to end."""
        error: BaseException | None = None
        while (work := self._calls.get()) is not None:
            call, future = work
            if error is None:
                try:
                    future.set_result(call())
                    continue
                except BaseException as raised:
                    error = raised
            future.set_exception(error)
