"""What a loss signal of the user's own is given (`signal_function.py` calls it). Importing this imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from versatune_ds.mixture.own_signal import DomainLosses

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SignalContext:
    """What a signal is given. `held_out` costs nothing more; `model` answers whatever else you want to measure."""

    step: int
    """Optimizer steps done; 0 before training."""
    num_steps: int
    """Optimizer steps of the run, `train.steps`."""
    domain_names: tuple[str, ...]
    """The domains in the order of the run."""
    held_out: DomainLosses
    """The held-out losses just measured, in nats per loss token, with standard errors; None for a domain without
    held-out rows. The same on every rank."""
    model: Any
    """The transformers model with its current weights, in evaluation mode and without gradients;
    `model(input_ids=...).logits` works as usual. Under ZeRO-3 every rank must make the same number of forward
    passes."""
    tokenizer: Any
    """The run's tokenizer."""
    device: torch.device
    """Where the model is."""
    rank: int
    """This process, 0 to world_size - 1."""
    world_size: int
    """Processes of the run."""

    def sum_over_ranks(self, values: Any) -> np.ndarray:
        """Return the element-wise sum over all ranks, float64, the same on each; every rank must call it.

        Args:
            values: Numbers of this rank, such as right answers by domain.
        """
        from versatune_ds.distributed import sum_over_ranks  # imports torch

        return sum_over_ranks(np.asarray(values, dtype=np.float64))
