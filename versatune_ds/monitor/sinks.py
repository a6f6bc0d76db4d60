"""Define a sink, pass values to several, and keep a slow or failing one from holding up training.

Rank 0 calls `Monitor`. The files and the terminal are written at once; whatever talks to a service runs in a thread of
its own.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from versatune_ds.mixture.policies.acted import ALARM, read_recorded

logger = logging.getLogger(__name__)


class Sink(Protocol):
    """Receiver of a run's metrics, decisions and alerts."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record the metrics of a step."""

    def decision(self, decision: Mapping[str, Any]) -> None:
        """Record a decision of the controller, as `Decision.to_dict` returns it."""

    def alert(self, step: int, *, title: str, text: str) -> None:
        """Report something that a person should look at."""

    def finish(self, *, exit_code: int) -> None:
        """Close; no call follows."""


class Monitor:
    """Pass values to all sinks; ranks other than 0 have none.

    Args:
        sinks: Receivers, called in this order.
    """

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks
        self._titles: set[str] = set()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record a step's metrics."""
        for sink in self._sinks:
            sink.metrics(step, values)

    def decision(self, decision: Mapping[str, Any]) -> None:
        """Record a decision; an alarm among its safeguards is an alert too."""
        for sink in self._sinks:
            sink.decision(decision)
        for acted in read_recorded(decision["acted"]):
            if acted.kind == ALARM:
                self.alert(decision["decided_at_step"], title="the mixture collapses", text=acted.text)

    def alert(self, step: int, *, title: str, text: str) -> None:
        """Report something that a person should look at; a title is reported only once."""
        if title in self._titles:
            return
        self._titles.add(title)
        for sink in self._sinks:
            sink.alert(step, title=title, text=text)

    def finish(self, *, exit_code: int) -> None:
        """Close all sinks."""
        for sink in self._sinks:
            sink.finish(exit_code=exit_code)


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
        """Queue a call, unless the sink has failed."""
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
                    error or type(error).__name__,
                    self._way_out,
                )
                return
