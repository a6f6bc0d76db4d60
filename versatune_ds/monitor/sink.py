"""Define what a receiver of a run's metrics, decisions and alerts must have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable


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


@runtime_checkable
class StepSink(Protocol):
    """A sink that is also called after every optimizer step."""

    def step(self, step: int) -> None:
        """Record that a step was taken; its results may still be on the device."""
