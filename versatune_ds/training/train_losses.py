"""Sum the losses of training batches by domain between two updates: the signal that costs no pass of its own.

Every contribution is a multiple of 2^-16, so float64 adds it without rounding, in any order and however
it is spread over ranks, steps and restarts: a run that was stopped between two updates gets the same bits.

Shape legend: **K** domains.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from versatune_ds.distributed import World, sum_over_ranks
from versatune_ds.engine.engine import StepResult
from versatune_ds.mixture.statistics import DomainStatistics

_SCALE = 2.0**16
"""Sums below 2^53 / 2^16 = 1.4e11 nats (squared nats) are exact; a step is rounded by at most 8e-6 of them."""


class TrainLosses:
    """Sum losses, their squares and loss tokens by domain since the last update.

    Args:
        num_domains: K.
        world: This process's place.
    """

    def __init__(self, num_domains: int, *, world: World) -> None:
        self._world = world
        self._restored = np.zeros(3 * num_domains)
        self._sums_3K: torch.Tensor | None = None

    def add(self, result: StepResult) -> None:
        """Add one optimizer step; nothing is read from the device. A skipped step does not count."""
        if not result.is_applied:
            return
        sums_3K = torch.round(torch.cat([part.double() for part in result.by_domain]) * _SCALE) / _SCALE
        self._sums_3K = sums_3K if self._sums_3K is None else self._sums_3K + sums_3K

    def take(self) -> DomainStatistics:
        """Return the sums over all ranks, and start again from zero.

        Waits for the device. Communication: one all-reduce of 3K numbers.
        """
        statistics = DomainStatistics.from_vector(self._total())
        self._restored, self._sums_3K = np.zeros_like(self._restored), None
        return statistics

    def _total(self) -> np.ndarray:
        """Return the sums over all ranks, float64 [3K]. Communication: one all-reduce."""
        own = 0.0 if self._sums_3K is None else self._sums_3K.cpu().numpy()
        return sum_over_ranks(self._restored + own)

    def state_dict(self) -> dict[str, Any]:
        """Return JSON-able, exact state, the same on every rank. Communication: one all-reduce of 3K numbers."""
        total = self._total()
        return {"sums": [float(value) if np.isfinite(value) else None for value in total]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load saved state; rank 0 keeps the sum of all ranks."""
        sums = np.array([np.nan if value is None else value for value in state["sums"]])
        self._restored = sums if self._world.is_rank_zero else np.zeros_like(sums)
        self._sums_3K = None
