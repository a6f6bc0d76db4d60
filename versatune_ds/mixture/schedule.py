"""The schedule: which weights apply from which step.

It is append-only: the loader has planned steps ahead with it, so the weights of a step never change.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

import numpy as np

from versatune_ds.mixture.weights import as_weights

_VERSION = 1


class Schedule:
    """Entries (effective_step, weights) in rising order of steps; the first is for step 0."""

    def __init__(self, weights_K: np.ndarray) -> None:
        """Start with the weights of step 0, shape [K]."""
        self._steps = [0]
        self._weights = [as_weights(weights_K, "weights of step 0")]

    def append(self, effective_step: int, weights_K: np.ndarray) -> None:
        """Add weights [K] that apply from a step on.

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
        """Return the weights [K] of a step >= 0."""
        return self._weights[bisect_right(self._steps, step) - 1].copy()

    def state_dict(self) -> dict[str, Any]:
        """Return JSON-able state, exact."""
        return {
            "version": _VERSION,
            "entries": [[step, w.tolist()] for step, w in zip(self._steps, self._weights, strict=True)],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a saved schedule.

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
