"""Skip optimizer steps whose gradient is no number, or whose loss jumps, and end a run that has only such steps.

The one idea: an update is refused by a gradient that is not finite. DeepSpeed looks at the gradient's norm on all ranks
before it steps (ZeRO 1 to 3 and fp16; the engine does it for stage 0), so every rank skips the same step, Adam's
moments and counter stay, and nothing is asked of the device that was not asked before. A loss that jumps is refused by
multiplying it with NaN before its backward pass; to know it, the host waits for the device once a step, and
`train.spike_factor` is off by default for that reason. The order of the data does not depend on what is skipped.
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
from versatune_ds.run_folder.checkpoint_files import whole_checkpoints

logger = logging.getLogger(__name__)

_MEAN_STEPS = 32
"""Steps over which the usual loss is taken: each weighs 1/32 of what went before."""
_MIN_STEPS = 8
"""Updates until the usual loss is known well enough to judge by."""


class BadSteps:
    """Count steps without an update, judge losses, and stop the run when there are too many in a row.

    Args:
        train: The recipe's train section.
        run_dir: The run's folder, to name the checkpoint that stands.
    """

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
        """Return what the engine asks before it updates the weights; None where only gradients are looked at."""
        return None if self.spike_factor is None else self.is_spike

    def is_spike(self, loss_sum: float, num_loss_tokens_global: int) -> bool:
        """Return whether the loss of the global batch is beyond `spike_factor` times the usual one; same on all ranks.

        Communication: one all-reduce of one number. Called only where `spike_factor` is set.

        Args:
            loss_sum: This rank's sum of token losses.
            num_loss_tokens_global: Loss tokens of the batch over all ranks.
        """
        assert self.spike_factor is not None, "asked for only where it is set"
        loss_mean = float(sum_over_ranks(np.array([loss_sum]))[0]) / max(num_loss_tokens_global, 1)
        if self._num_judged >= _MIN_STEPS and loss_mean > self.spike_factor * self._usual_loss:
            logger.warning("loss %.4g, usually %.4g: a spike", loss_mean, self._usual_loss)
            return True
        if math.isfinite(loss_mean):
            self._num_judged += 1
            self._usual_loss += (loss_mean - self._usual_loss) / min(self._num_judged, _MEAN_STEPS)
        return False

    def record(self, *, step: int, is_applied: bool) -> None:
        """Count a step.

        Raises:
            RuntimeError: If `max_bad_steps` steps in a row made no update; it names them and the last checkpoint.
        """
        if is_applied:
            self._num_in_a_row = 0
            return
        self.num_skipped += 1
        self._num_in_a_row += 1
        logger.warning("step %d: no update, its gradient is not finite or its loss is a spike", step)
        if self._num_in_a_row >= self._limit:
            sound = next((path.name for path in whole_checkpoints(self._run_dir)), "none")
            raise RuntimeError(
                f"steps {step - self._num_in_a_row + 1} to {step}: {self._num_in_a_row} in a row "
                f"(train.max_bad_steps) made no update: their gradients are not finite, or their losses spikes. Last "
                f"good checkpoint: {sound}. Lower train.learning_rate or train.max_grad_norm and start again to go on "
                "from it"
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
        """Take over saved state."""
        self.num_skipped, self._num_in_a_row = state["num_skipped"], state["num_in_a_row"]
        self._usual_loss, self._num_judged = state["usual_loss"], state["num_judged"]
