"""The smallest and largest weight of each domain in a plan, and the mixtures within them.

Shape legend: **N** mixtures, **K** domains.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_SMALLEST = 1e-12
"""Stands in for a weight of 0, which could take no share of what the others must give up."""
_HALVINGS = 60
_LARGEST_LOG = 30.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Limits:
    """Smallest and largest weights, each float64 [K]; equal where a domain's share is given."""

    lower_K: np.ndarray
    upper_K: np.ndarray

    def __post_init__(self) -> None:
        """Check that a mixture fits; raise ValueError otherwise."""
        if np.any(self.lower_K > self.upper_K) or self.lower_K.sum() > 1 + 1e-9 or self.upper_K.sum() < 1 - 1e-9:
            raise ValueError(f"no weights lie between {self.lower_K.tolist()} and {self.upper_K.tolist()} and sum to 1")

    def contain(self, weights_NK: np.ndarray) -> np.ndarray:
        """Return which mixtures lie within the limits, bool [N]; rounding does not count."""
        return np.all((weights_NK >= self.lower_K - 1e-9) & (weights_NK <= self.upper_K + 1e-9), axis=1)

    def nearest(self, weights_NK: np.ndarray) -> np.ndarray:
        """Return the mixtures within the limits that are nearest in KL divergence, [N,K].

        They are clip(c * weights, lower, upper) with the c that makes the sum 1, found by halving an interval of log c:
        domains that touch no limit keep their ratios. Example: (.70, .28, .02) with a floor of .10 is
        (.643, .257, .10). A mixture within the limits stays as it is.
        """
        nearest_NK = np.array(weights_NK, dtype=np.float64)
        is_outside_N = ~self.contain(nearest_NK)
        if not np.any(is_outside_N):
            return nearest_NK
        positive_NK = np.maximum(nearest_NK[is_outside_N], _SMALLEST)
        low_N, high_N = (np.full(len(positive_NK), sign * _LARGEST_LOG) for sign in (-1.0, 1.0))
        for _ in range(_HALVINGS):
            middle_N = (low_N + high_N) / 2
            sums_N = np.clip(np.exp(middle_N)[:, None] * positive_NK, self.lower_K, self.upper_K).sum(axis=1)
            low_N, high_N = np.where(sums_N < 1, middle_N, low_N), np.where(sums_N < 1, high_N, middle_N)
        nearest_NK[is_outside_N] = np.clip(np.exp(high_N)[:, None] * positive_NK, self.lower_K, self.upper_K)
        return nearest_NK
