"""The schedule: which weights apply from which step.

It is append-only: the loader has planned steps ahead with it, so the weights of a step never change. Each entry
extends one digest, so ranks compare schedules, and checkpoints save them, without the entries of past steps.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
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
        self._digest = _extended("", 0, self._weights[0])

    @property
    def digest(self) -> str:
        """Return the digest of all entries so far, in hexadecimal; a load restores it."""
        return self._digest

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
        self._digest = _extended(self._digest, effective_step, self._weights[-1])

    def weights_at(self, step: int) -> np.ndarray:
        """Return the weights [K] of a step >= 0.

        Raises:
            RuntimeError: If the step is before the first one of a loaded schedule.
        """
        position = bisect_right(self._steps, step) - 1
        if position < 0:
            raise RuntimeError(f"schedule: no weights for step {step}; they are known from step {self._steps[0]} on")
        return self._weights[position].copy()

    def state_dict(self, *, from_step: int = 0) -> dict[str, Any]:
        """Return JSON-able state, exact: what steps from `from_step` on need, whatever the number of past updates."""
        first = max(bisect_right(self._steps, from_step) - 1, 0)
        entries = zip(self._steps[first:], self._weights[first:], strict=True)
        return {
            "version": _VERSION,
            "entries": [[step, weights_K.tolist()] for step, weights_K in entries],
            "digest": self._digest,
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
        self._digest = state.get("digest") or _digest_of(self._steps, self._weights)


def _digest_of(steps: Sequence[int], weights: Sequence[np.ndarray]) -> str:
    """Return the digest of a whole schedule: earlier versions saved all entries and no digest."""
    digest = ""
    for step, weights_K in zip(steps, weights, strict=True):
        digest = _extended(digest, step, weights_K)
    return digest


def _extended(digest: str, step: int, weights_K: np.ndarray) -> str:
    """Return the digest of a schedule with one entry more; it depends on every bit of the weights [K]."""
    values = np.ascontiguousarray(weights_K, dtype="<f8").tobytes()
    return hashlib.blake2b(f"{digest} {step} ".encode() + values, digest_size=16).hexdigest()
