"""Run calls one after another in a background thread.

Unlike an executor's, the thread is a daemon: a read that hangs on a network disk cannot keep a failed run from exiting.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

_logger = logging.getLogger(__name__)


class BackgroundThread:
    """Run calls in order; if one fails, so do all that follow, since each builds on the one before."""

    def __init__(self, *, name: str) -> None:
        self._name = name
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        """Queue a call and return the future of its result. The thread starts with the first call.

        Raises:
            RuntimeError: If the thread was closed.
        """
        if self._is_closed:
            raise RuntimeError(f"thread {self._name}: a call was queued after close")
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        future: Future[Any] = Future()
        self._calls.put((call, future))
        return future

    def close(self, *, timeout_seconds: float = 10.0) -> None:
        """Cancel the queued calls and end the thread.

        Args:
            timeout_seconds: How long to wait for the running call. A call that hangs is abandoned with a warning; it
                ends with the process.
        """
        self._is_closed = True
        if self._thread is None:
            return
        self._calls.put(None)
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            _logger.warning("thread %s: a call still runs after %g s; not waiting longer", self._name, timeout_seconds)
        self._thread = None

    def _run(self) -> None:
        """Run queued calls until the queue is closed."""
        error: BaseException | None = None
        while (work := self._calls.get()) is not None:
            call, future = work
            if self._is_closed:
                future.cancel()
                continue
            if error is None:
                try:
                    future.set_result(call())
                    continue
                except BaseException as raised:
                    error = raised
            future.set_exception(error)
