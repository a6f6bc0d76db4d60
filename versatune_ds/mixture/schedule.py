"""Keep which weights hold from which step.

The one idea: append-only. The loader may have planned steps ahead with the weights of its time, so what was once
said about a step is never changed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

import numpy as np

from versatune_ds.mixture.weights import as_weights

_VERSION = 1


class Schedule:
    """Hold (effective_step, weights) in rising order of steps; it starts with the weights of step 0."""

    def __init__(self, weights_K: np.ndarray) -> None:
        """Start with the weights that hold from step 0, shape [K]."""
        self._steps = [0]
        self._weights = [as_weights(weights_K, "weights of step 0")]

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._steps)

    @property
    def last_step(self) -> int:
        """Return the step from which the newest weights hold."""
        return self._steps[-1]

    def append(self, effective_step: int, weights_K: np.ndarray) -> None:
        """Add weights [K] that hold from a step on.

        Raises:
            RuntimeError: If the step is not after the last one, or the number of domains changed.
        """
        if effective_step <= self._steps[-1]:
            raise RuntimeError(
                f"schedule: weights for step {effective_step} after those for step {self._steps[-1]}; steps must rise"
            )
        if len(weights_K) != len(self._weights[0]):
            raise RuntimeError(f"schedule: {len(weights_K)} weights for {len(self._weights[0])} domains")
        self._steps.append(effective_step)
        self._weights.append(as_weights(weights_K, f"weights of step {effective_step}"))

    def weights_at(self, step: int) -> np.ndarray:
        """Return the weights [K] that hold at a step >= 0."""
        return self._weights[bisect_right(self._steps, step) - 1].copy()

    def state_dict(self) -> dict[str, Any]:
        """Return JSON-able state, exact."""
        return {
            "version": _VERSION,
            "entries": [[step, w.tolist()] for step, w in zip(self._steps, self._weights, strict=True)],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved schedule.

        Raises:
            RuntimeError: If the version or the number of domains differs.
        """
        if state.get("version") != _VERSION:
            raise RuntimeError(f"schedule: saved by version {state.get('version')}, this is version {_VERSION}")
        steps, weights = zip(*state["entries"], strict=True)
        if len(weights[0]) != len(self._weights[0]):
            raise RuntimeError(f"schedule: saved for {len(weights[0])} domains, this run has {len(self._weights[0])}")
        self._steps = list(steps)
        self._weights = [np.array(w, dtype=np.float64) for w in weights]
