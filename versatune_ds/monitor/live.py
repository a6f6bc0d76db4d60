"""Show a run as a live view at the bottom of the terminal; log lines scroll above it.

Rank 0 alone draws, when something is recorded and at most a few times a second, without a thread. While the view is
shown, this package's log lines are written through it, so that the two never overwrite each other.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live

from versatune_ds.monitor.live_frame import LiveState, frame
from versatune_ds.monitor.plain import log_decision

logger = logging.getLogger(__name__)

_PACKAGE_LOGGER = logging.getLogger("versatune_ds")
_LINES_AROUND_DOMAINS = 6
_SECONDS_BETWEEN_FRAMES = 0.25


class LiveTerminal:
    """A sink that draws the state of a run on stderr until it is finished.

    Args:
        name: The run's name.
        num_steps: Optimizer steps of the run.
        step: Steps completed before.
        console: Where to draw; stderr by default.
    """

    def __init__(self, *, name: str, num_steps: int, step: int, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._state = LiveState(name=name, num_steps=num_steps, step=step, train={}, decision=None)
        self._drawn_at = time.monotonic()
        self._live = Live(get_renderable=self._frame, console=self._console, auto_refresh=False)
        self._live.start(refresh=True)
        self._streams = _send_log_lines_to(sys.stderr)  # rich replaced it, to draw below what is written

    def _frame(self) -> RenderableType:
        """Return the current frame, as high as the terminal allows."""
        return frame(self._state, max_domains=max(1, self._console.height - _LINES_AROUND_DOMAINS))

    def _draw(self) -> None:
        """Draw the current frame, unless the last one was drawn just before."""
        if time.monotonic() - self._drawn_at >= _SECONDS_BETWEEN_FRAMES:
            self._live.refresh()
            self._drawn_at = time.monotonic()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Show a step's training metrics."""
        train = values if "train/loss" in values else self._state.train
        self._state = replace(self._state, step=step, train=train)
        self._draw()

    def decision(self, decision: Mapping[str, Any]) -> None:
        """Show a decision, and log its reason above the view."""
        self._state = replace(self._state, decision=decision)
        self._draw()
        log_decision(decision)

    def alert(self, step: int, *, title: str, text: str) -> None:
        """Show nothing: a warning was logged where the cause was found."""

    def finish(self, *, exit_code: int) -> None:
        """Draw the last frame, leave it on the screen, and restore the log handlers."""
        self._live.refresh()
        self._live.stop()
        for handler, stream in self._streams:
            handler.setStream(stream)


def _send_log_lines_to(stream: Any) -> list[tuple[logging.StreamHandler, Any]]:
    """Point the package's log handlers at a stream; return them with the streams they had."""
    handlers = [handler for handler in _PACKAGE_LOGGER.handlers if type(handler) is logging.StreamHandler]
    return [(handler, handler.setStream(stream)) for handler in handlers]
