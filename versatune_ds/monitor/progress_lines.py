"""Log the progress of a run as plain lines: one an interval, one an update, and one a domain where updates are slow.

The lines are plain text, so a terminal, a file and a Slurm log show them alike.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from versatune_ds.progress import duration
from versatune_ds.text_table import number_cell, text_table

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_TABLES = 10.0
"""Updates that follow sooner than this get one line: a short run would otherwise print a wall of them."""


class PlainTerminal:
    """A sink that logs the progress of a run.

    Args:
        num_steps: Optimizer steps of the run.
        clock: Returns seconds.
    """

    def __init__(self, *, num_steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._num_steps = num_steps
        self._clock = clock
        self._last_table: float | None = None
        self._is_shortened = False

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log one line for a step's training metrics; those of validation are logged with the decision."""
        if "train/loss" not in values:
            return
        logger.info(
            "step %d/%d  loss %.3f%s  grad %.2f  %s tokens/s  %s left",
            step,
            self._num_steps,
            values["train/loss"],
            "".join(f"  {text}" for text in router_loss_texts(values)),
            values["train/grad_norm"],
            f"{values['perf/tokens_per_second']:,.0f}",
            duration((self._num_steps - step) * values["perf/step_seconds"]),
        )

    def decision(self, decision: Mapping[str, Any]) -> None:
        """Log why the weights moved, then one line per domain: validation loss, weight before and after.

        Where the last such lines are a few seconds old, only why.
        """
        log_decision(decision)
        now = self._clock()
        if self._last_table is not None and now - self._last_table < SECONDS_BETWEEN_TABLES:
            if not self._is_shortened:
                logger.info("  updates come fast: domains are listed every %g s", SECONDS_BETWEEN_TABLES)
            self._is_shortened = True
            return
        self._last_table = now
        rows = []
        for name, after in decision["weights_after"].items():
            before, loss = decision["weights_before"][name], decision["losses"][name]["mean"]
            weight = f"weight {before:.4f} -> {after:.4f}"
            rows.append((name, f"loss {number_cell(loss)}", weight, direction(before, after)))
        for line in text_table((), rows, num_left=4).splitlines():
            logger.info("  %s", line)

    def alert(self, step: int, *, title: str, text: str) -> None:
        """Log nothing: a warning was logged where the cause was found."""

    def finish(self, *, exit_code: int) -> None:
        """Do nothing."""


def router_loss_texts(values: Mapping[str, float]) -> list[str]:
    """Return the router's part of the loss of a mixture of experts as a text; none for other models."""
    return [f"router {values['train/router_loss']:.3g}"] if "train/router_loss" in values else []


def log_decision(decision: Mapping[str, Any]) -> None:
    """Log why the weights moved, and every safeguard that acted."""
    logger.info("update %d after step %d: %s", decision["update"], decision["decided_at_step"], decision["reason"])
    if decision["acted"]:
        logger.info("  safeguards: %s", "; ".join(decision["acted"]))


def direction(before: float, after: float) -> str:
    """Return up, down or =; a move below half of the last digit shown counts as none."""
    if abs(after - before) < 5e-5:
        return "="
    return "up" if after > before else "down"
