"""Call functions of the user's during training, and let them end it: `versatune_ds.train(on_step=..., ...)`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from versatune_ds.mixture.decision import Decision

logger = logging.getLogger(__name__)


class StopTraining(Exception):
    """Raise it in a callback to end training: the run is saved after the current step and `train` returns it.

    The run is not complete; the same call resumes it. Raised before the first step, training ends after that step. Its
    text is logged. Any other exception ends training with that exception, and only earlier checkpoints remain.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Callbacks:
    """Functions that are called during training; what they return is ignored, and training waits for them."""

    on_step: Callable[[int], object] | None = None
    """Called after every optimizer step with its number, from 1, before it is measured or saved."""
    on_metrics: Callable[[int, Mapping[str, float]], object] | None = None
    """Called with the step and the metrics by name, as metrics.jsonl has them: after every `monitor.log_every` steps,
    after every measurement of held-out losses, and with the answers of `validation.tasks`."""
    on_decision: Callable[[Decision], object] | None = None
    """Called with every decision, after it was recorded; the first is before training."""

    def given(self) -> list[str]:
        """Return the names of those that are given."""
        names = ("on_step", "on_metrics", "on_decision")
        return [name for name in names if getattr(self, name) is not None]


class CallbackSink:
    """A sink that passes a run's steps, metrics and decisions to the user's functions.

    Args:
        callbacks: The functions.
        stop: Called where one of them raises StopTraining; ends the run after the current step, saved.
    """

    def __init__(self, callbacks: Callbacks, *, stop: Callable[[], None]) -> None:
        self._callbacks = callbacks
        self._stop = stop
        self.is_stopped = False
        """Whether a callback has ended the run."""

    def step(self, step: int) -> None:
        """Call `on_step`."""
        self._call("on_step", step)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Call `on_metrics`."""
        self._call("on_metrics", step, dict(values))

    def decision(self, decision: Mapping[str, Any]) -> None:
        """Call `on_decision`."""
        if self._callbacks.on_decision is not None:
            self._call("on_decision", Decision.from_dict(decision))

    def alert(self, step: int, *, title: str, text: str) -> None:
        """Do nothing."""

    def finish(self, *, exit_code: int) -> None:
        """Do nothing."""

    def _call(self, name: str, *arguments: Any) -> None:
        function = getattr(self._callbacks, name)
        if function is None:
            return
        try:
            function(*arguments)
        except StopTraining as stopped:
            if self.is_stopped:
                return
            why = f": {stopped}" if str(stopped) else ""
            logger.info("stopped by %s%s; the run is saved after this step", name, why)
            self.is_stopped = True
            self._stop()
