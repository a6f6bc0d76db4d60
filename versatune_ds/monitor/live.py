"""Show a run as a live view at the bottom of the terminal; log lines scroll above it.

Rank 0 alone draws, when something is recorded and at most a few times a second, without a thread. While the view is
shown, this package's log lines are written through it, so that the two never overwrite each other. A frame is a pure
function of the recorded values and the terminal's size, so it can be tested as text.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from versatune_ds.monitor.progress_lines import direction, log_decision, router_loss_texts
from versatune_ds.progress import duration, show_in
from versatune_ds.text_table import number_cell

_PACKAGE_LOGGER = logging.getLogger("versatune_ds")
_LINES_AROUND_DOMAINS = 6
_SECONDS_BETWEEN_FRAMES = 0.25
_BAR_CELLS = 16
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_ARROWS = {"up": ("▲", "green"), "down": ("▼", "red"), "=": ("=", "dim")}
_FORGETTING_SHOWN = 0.005
"""Relative rise over a domain's best loss from which it is marked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveState:
    """The values that a frame shows."""

    name: str
    num_steps: int
    step: int
    """The last step recorded."""
    train: Mapping[str, float]
    """Training metrics of the last interval; empty before the first."""
    decision: Mapping[str, Any] | None
    """The last decision; None before the first."""
    activity: str | None = None
    """What takes long just now, in place of the numbers; None for nothing."""


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
        show_in(self._show_activity)

    def _frame(self) -> RenderableType:
        """Return the current frame, as high as the terminal allows."""
        return frame(self._state, max_domains=max(1, self._console.height - _LINES_AROUND_DOMAINS))

    def _show_activity(self, activity: str | None) -> None:
        """Show what takes long, or that it is over; called from the thread that watches it."""
        self._state = replace(self._state, activity=activity)
        self._live.refresh()

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
        show_in(None)
        self._state = replace(self._state, activity=None)
        self._live.refresh()
        self._live.stop()
        for handler, stream in self._streams:
            handler.setStream(stream)


def _send_log_lines_to(stream: Any) -> list[tuple[logging.StreamHandler, Any]]:
    """Point the package's log handlers at a stream; return them with the streams they had."""
    handlers = [handler for handler in _PACKAGE_LOGGER.handlers if type(handler) is logging.StreamHandler]
    return [(handler, handler.setStream(stream)) for handler in handlers]


def frame(state: LiveState, *, max_domains: int) -> RenderableType:
    """Return the frame: progress, the last interval's numbers, one line a domain.

    Args:
        state: What to show.
        max_domains: Lines for domains: those with the largest weights are shown, the others counted.
    """
    activity = None if state.activity is None else Text(state.activity, style="dim", no_wrap=True, overflow="ellipsis")
    parts: list[RenderableType] = [_progress(state), activity or _numbers(state)]
    if state.decision is not None:
        parts.append(_domains(state.decision, max_domains=max_domains))
    return Group(*parts)


def _progress(state: LiveState) -> RenderableType:
    """Return name, step, bar and remaining time on one line."""
    seconds = state.train.get("perf/step_seconds")
    left = f"{duration((state.num_steps - state.step) * seconds)} left" if seconds else "measuring"
    line = Table.grid(padding=(0, 1), expand=True)
    line.add_column(no_wrap=True, overflow="ellipsis", max_width=30)
    line.add_column(no_wrap=True)
    line.add_column(ratio=1)
    line.add_column(no_wrap=True, justify="right")
    bar = ProgressBar(total=state.num_steps, completed=state.step)
    line.add_row(Text(state.name, style="bold"), f"step {state.step}/{state.num_steps}", bar, left)
    return line


def _numbers(state: LiveState) -> RenderableType:
    """Return the last interval's loss, gradient norm, rate, speed and memory on one line."""
    train = state.train
    if not train:
        return Text("no step is logged yet", style="dim")
    parts = [
        f"loss {train['train/loss']:.3f}",
        *router_loss_texts(train),
        f"grad {train['train/grad_norm']:.2f}",
        f"lr {train['train/learning_rate']:.1e}",
        f"{train['perf/tokens_per_second']:,.0f} tokens/s",
        *([f"MFU {train['perf/mfu']:.0%}"] if "perf/mfu" in train else []),
        f"{train['perf/memory_gib']:.1f} GiB",
    ]
    return Text("   ".join(parts), no_wrap=True, overflow="ellipsis")


def _domains(decision: Mapping[str, Any], *, max_domains: int) -> RenderableType:
    """Return one line a domain: the weight that the last decision set, and the losses it was based on."""
    weights = decision["weights_after"]
    shown = sorted(sorted(weights, key=weights.get, reverse=True)[:max_domains], key=list(weights).index)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("domain", no_wrap=True, overflow="ellipsis", max_width=16)
    table.add_column(f"weight from step {decision['effective_step']}", no_wrap=True, min_width=_BAR_CELLS + 9)
    for heading in ("loss", "reference"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("forgot", no_wrap=True)
    largest = max(weights.values())
    for name in shown:
        table.add_row(*_domain_cells(decision, name, largest=largest))
    if len(shown) < len(weights):
        table.add_row(Text(f"and {len(weights) - len(shown)} more", style="dim"))
    return table


def _domain_cells(decision: Mapping[str, Any], name: str, *, largest: float) -> tuple[Text, ...]:
    """Return a domain's cells: name, weight with bar and arrow, loss, reference, forgetting."""
    before, after = decision["weights_before"][name], decision["weights_after"][name]
    signals, loss = decision["signals"][name], decision["losses"][name]["mean"]
    arrow, style = _ARROWS[direction(before, after)]
    weight = Text.assemble((bar(after / largest), "cyan"), f" {after:.3f} ", (arrow, style))
    forgot = signals["forgetting_from_best"]
    is_marked = forgot is not None and forgot >= _FORGETTING_SHOWN
    mark = Text(f"! {forgot:.1%}", style="yellow") if is_marked else Text("")
    return Text(name), weight, Text(number_cell(loss)), Text(number_cell(signals["reference_loss"])), mark


def bar(share: float) -> str:
    """Return a bar of eighths of a cell, for a share in 0..1; 0.5 of 16 cells is 8 full ones.

    A share above 0 shows at least an eighth.
    """
    eighths = max(round(share * _BAR_CELLS * 8), int(share > 0))
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(_BAR_CELLS)
