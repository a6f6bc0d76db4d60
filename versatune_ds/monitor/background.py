"""Call a sink in a thread of its own, so that a slow or failing service never delays training."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from versatune_ds.log import first_line
from versatune_ds.monitor.sink import Sink

logger = logging.getLogger(__name__)


class Background:
    """Call a sink from a thread of its own: one that is slow, unreachable or failing never delays training.

    Calls wait in a queue in memory, without bound, as metrics are small. A failure is logged once; after it the sink is
    not called again, as the files have everything.

    Args:
        sink: Any sink.
        name: Its name in messages.
        patience_seconds: How long `finish` waits for the queued calls; None waits until all are made.
        way_out: What the user can do if the sink missed something.
    """

    def __init__(self, sink: Sink, *, name: str, patience_seconds: float | None, way_out: str) -> None:
        self._sink = sink
        self._name = name
        self._patience_seconds = patience_seconds
        self._way_out = way_out
        self._has_failed = False
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"versatune-{name}", daemon=True)
        self._thread.start()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Queue the metrics of a step."""
        self._put(lambda: self._sink.metrics(step, values))

    def decision(self, decision: Mapping[str, Any]) -> None:
        """Queue a decision."""
        self._put(lambda: self._sink.decision(decision))

    def alert(self, step: int, *, title: str, text: str) -> None:
        """Queue an alert."""
        self._put(lambda: self._sink.alert(step, title=title, text=text))

    def finish(self, *, exit_code: int) -> None:
        """Make the queued calls and close the sink; after `patience_seconds` give up with a warning."""
        self._put(lambda: self._sink.finish(exit_code=exit_code))
        self._calls.put(None)
        self._thread.join(self._patience_seconds)
        if self._thread.is_alive():
            logger.warning(
                "%s did not receive everything within %g s; metrics.jsonl is complete; %s",
                self._name,
                self._patience_seconds,
                self._way_out,
            )

    def _put(self, call: Callable[[], None]) -> None:
        if not self._has_failed:
            self._calls.put(call)

    def _work(self) -> None:
        """Make the queued calls in order, until the end or the first failure."""
        while (call := self._calls.get()) is not None:
            try:
                call()
            except Exception as error:  # whatever a service's client raises must not stop training
                self._has_failed = True
                logger.warning(
                    "%s failed and gets no more data (%s); training continues, metrics.jsonl is complete; %s",
                    self._name,
                    first_line(error),
                    self._way_out,
                )
                return
