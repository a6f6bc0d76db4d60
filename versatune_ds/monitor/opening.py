"""Open the sinks that a recipe asks for.

The record is opened first, so that it exists whatever fails after it.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

from versatune_ds.config import RunConfig
from versatune_ds.monitor.progress_lines import PlainTerminal
from versatune_ds.monitor.sinks import Background, Monitor, Sink
from versatune_ds.run_folder.json_lines import JsonLines
from versatune_ds.run_folder.names import TENSORBOARD_FOLDER

logger = logging.getLogger(__name__)


def open_monitor(
    config: RunConfig, *, is_rank_zero: bool, resumed_step: int, export_model: Callable[[Path], Path] | None = None
) -> Monitor:
    """Return the monitor of this rank.

    Args:
        config: The run's config.
        is_rank_zero: Whether this is rank 0; the others record nothing.
        resumed_step: Step the run resumed after, -1 for a new run.
        export_model: Exports the model of a run's folder, for a sink that uploads it.

    Raises:
        ValueError: If W&B or TensorBoard cannot be opened as configured; the message says what to do.
    """
    if not is_rank_zero:
        return Monitor([])
    sinks: list[Sink] = [JsonLines(config.run_dir, resumed_step=resumed_step)]
    if config.monitor.wandb.mode != "off":
        sinks.append(_open_wandb(config, resumed_step=resumed_step, export_model=export_model))
    if config.monitor.tensorboard:
        sinks.append(_open_tensorboard(config, resumed_step=resumed_step))
    return Monitor([*sinks, _open_terminal(config, resumed_step=resumed_step)])


def _open_wandb(config: RunConfig, *, resumed_step: int, export_model: Callable[[Path], Path] | None) -> Sink:
    """Return W&B in a thread of its own."""
    from versatune_ds.monitor.wandb_sink import FINISH_SECONDS, Wandb  # takes half a second, and starts a service

    return Background(
        Wandb(config, resumed_step=resumed_step, export_model=export_model),
        name="W&B",
        patience_seconds=None if config.monitor.wandb.artifacts == "model" else 1.5 * FINISH_SECONDS,
        way_out=f"wandb sync {config.run_dir}/wandb/*run-* uploads what it recorded",
    )


def _open_tensorboard(config: RunConfig, *, resumed_step: int) -> Sink:
    """Return TensorBoard in a thread of its own."""
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
