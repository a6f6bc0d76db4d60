"""Open the sinks of a recipe, pass values to all of them, and keep a slow or failing one from delaying training.

Rank 0 calls `Monitor`. The files and the terminal are written at once; whatever talks to a service runs in a thread of
its own.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from versatune_ds.config import RunConfig
from versatune_ds.mixture.policies.acted import ALARM, read_recorded
from versatune_ds.monitor.background import Background
from versatune_ds.monitor.progress_lines import PlainTerminal
from versatune_ds.monitor.sink import Sink, StepSink
from versatune_ds.monitor.trackers import open_trackers
from versatune_ds.run_folder.json_lines import JsonLines
from versatune_ds.run_folder.names import TENSORBOARD_FOLDER

logger = logging.getLogger(__name__)


class Monitor:
    """Pass values to all sinks; ranks other than 0 have none.

    Args:
        sinks: Receivers, called in this order.
    """

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks
        self._step_sinks = [sink for sink in sinks if isinstance(sink, StepSink)]
        self._titles: set[str] = set()

    def step(self, step: int) -> None:
        """Pass an optimizer step on to the sinks that ask for each."""
        for sink in self._step_sinks:
            sink.step(step)

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


def open_monitor(
    config: RunConfig,
    *,
    resumed_step: int,
    export_model: Callable[[Path], Path] | None = None,
    more_sinks: Sequence[Sink] = (),
) -> Monitor:
    """Return the monitor of rank 0; the other ranks record nothing.

    Args:
        config: The run's config.
        resumed_step: Step the run resumed after, -1 for a new run.
        export_model: Exports the model of a run's folder, for a sink that uploads it.
        more_sinks: Receivers besides those of the recipe, called last.

    Raises:
        ValueError: If W&B or TensorBoard cannot be opened as configured; the message says what to do.
    """
    # The record is opened first, so that it exists even if another sink fails to open.
    sinks: list[Sink] = [JsonLines(config.run_dir, resumed_step=resumed_step)]
    if config.monitor.wandb.mode != "off":
        sinks.append(_open_wandb(config, resumed_step=resumed_step, export_model=export_model))
    if config.monitor.tensorboard:
        sinks.append(_open_tensorboard(config, resumed_step=resumed_step))
    sinks += open_trackers(config, resumed_step=resumed_step)
    return Monitor([*sinks, _open_terminal(config, resumed_step=resumed_step), *more_sinks])


def _open_wandb(config: RunConfig, *, resumed_step: int, export_model: Callable[[Path], Path] | None) -> Sink:
    from versatune_ds.monitor.wandb_sink import FINISH_SECONDS, Wandb  # takes half a second, and starts a service

    return Background(
        Wandb(config, resumed_step=resumed_step, export_model=export_model),
        name="W&B",
        patience_seconds=None if config.monitor.wandb.artifacts == "model" else 1.5 * FINISH_SECONDS,
        way_out=f"wandb sync {config.run_dir}/wandb/*run-* uploads what it recorded",
    )


def _open_tensorboard(config: RunConfig, *, resumed_step: int) -> Sink:
    from versatune_ds.monitor.tensorboard_sink import TensorBoard

    sink = TensorBoard(config.run_dir / TENSORBOARD_FOLDER, resumed_step=resumed_step)
    return Background(sink, name="TensorBoard", patience_seconds=60, way_out="is the disk full?")


def _open_terminal(config: RunConfig, *, resumed_step: int) -> Sink:
    """Return the live view if stderr is a terminal and info lines are shown, else plain lines."""
    is_live = config.monitor.terminal == "auto" and sys.stderr.isatty() and logger.isEnabledFor(logging.INFO)
    if not is_live:
        return PlainTerminal(num_steps=config.train.steps)
    from versatune_ds.monitor.live import LiveTerminal

    return LiveTerminal(name=config.run.name, num_steps=config.train.steps, step=max(resumed_step, 0))
