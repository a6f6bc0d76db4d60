"""Skip optimizer steps whose gradient is not finite or whose loss spikes, and end a run that has only such steps.

A step is skipped by a gradient that is not finite. DeepSpeed checks the gradient's norm on all ranks before it steps
(ZeRO 1 to 3 and fp16; the engine does it for stage 0), so every rank skips the same step, Adam's moments and counter
are kept, and nothing else is read from the device. For a loss that spikes, the engine multiplies it by NaN before
its backward pass. To see a spike the host waits for the device once a step, so `train.spike_factor` is off by default.
The order of the data does not depend on what is skipped.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from versatune_ds.config import TrainConfig
from versatune_ds.distributed import sum_over_ranks
from versatune_ds.run_folder.checkpoint_files import newest_checkpoint_name, restart_words

logger = logging.getLogger(__name__)

_MEAN_STEPS = 32
"""Steps over which the usual loss is averaged: each new one has weight 1/32."""
_MIN_STEPS = 8
"""Updates until the usual loss is known well enough to detect a spike."""


class BadSteps:
    """Count steps without an update, detect loss spikes, and stop the run when too many come in a row."""

    def __init__(self, train: TrainConfig, *, run_dir: Path) -> None:
        self._limit = train.max_bad_steps
        self.spike_factor = train.spike_factor
        self._run_dir = run_dir
        self.num_skipped = 0
        self._num_in_a_row = 0
        self._usual_loss = 0.0
        self._num_judged = 0

    @property
    def refusal(self) -> Callable[[float, int], bool] | None:
        """Return the engine's check before an update of the weights; None where only gradients are checked."""
        return None if self.spike_factor is None else self.is_spike

    def is_spike(self, loss_sum: float, num_loss_tokens_global: int) -> bool:
        """Return whether the loss of the global batch is beyond `spike_factor` times the usual one; same on all ranks.

        Communication: one all-reduce of one number. Called only where `spike_factor` is set.

        Args:
            loss_sum: This rank's sum of token losses.
            num_loss_tokens_global: Loss tokens of the batch over all ranks.
        """
        assert self.spike_factor is not None, "called only where it is set"
        loss_mean = float(sum_over_ranks(np.array([loss_sum]))[0]) / max(num_loss_tokens_global, 1)
        if self._num_judged >= _MIN_STEPS and loss_mean > self.spike_factor * self._usual_loss:
            logger.warning("loss %.4g, usually %.4g: a spike", loss_mean, self._usual_loss)
            return True
        if math.isfinite(loss_mean):
            self._num_judged += 1
            self._usual_loss += (loss_mean - self._usual_loss) / min(self._num_judged, _MEAN_STEPS)
        return False

    def record(self, *, step: int, is_applied: bool) -> None:
        """Record whether a step updated the weights.

        Raises:
            RuntimeError: If `max_bad_steps` steps in a row made no update; the message has the last checkpoint.
        """
        if is_applied:
            self._num_in_a_row = 0
            return
        self.num_skipped += 1
        self._num_in_a_row += 1
        logger.warning("step %d: no update, its gradient is not finite or its loss is a spike", step)
        if self._num_in_a_row >= self._limit:
            newest = newest_checkpoint_name(self._run_dir)
            raise RuntimeError(
                f"steps {step - self._num_in_a_row + 1} to {step}: {self._num_in_a_row} in a row "
                "(train.max_bad_steps) made no update: their gradients are not finite, or their losses spikes. Last "
                f"good checkpoint: {newest}. Lower train.learning_rate or train.max_grad_norm and "
                f"{restart_words(self._run_dir)}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return JSON-able, exact state."""
        return {
            "num_skipped": self.num_skipped,
            "num_in_a_row": self._num_in_a_row,
            "usual_loss": self._usual_loss,
            "num_judged": self._num_judged,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load saved state."""
        self.num_skipped, self._num_in_a_row = state["num_skipped"], state["num_in_a_row"]
        self._usual_loss, self._num_judged = state["usual_loss"], state["num_judged"]
