"""Check and project the weights of a mixture.

Weights are a float64 vector on the simplex. What a user wrote is checked and never repaired silently;
what the arithmetic made is projected, keeping the ratios of all domains that no bound touches.

Shape legend: **K** domains.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from versatune_ds.mixture.policies.simplex import normalise

SUM_TOLERANCE = 1e-6
"""How far from 1 the sum of weights that a user wrote may be, per domain; rounding to six digits stays within it."""

_ROUNDING = 1e-12
"""Sums this near to 1 are left alone, so that weights which pass through a file or a check twice stay the same."""

_SMALLEST_FREE_WEIGHT = 1e-12
"""Stands in for a weight of 0 in a projection, where 0 could take no share of what the others must give up."""


def as_weights(values: Sequence[float] | np.ndarray, what: str) -> np.ndarray:
    """Return values as weights, checked to be a distribution.

    Args:
        values: One number a domain, shape [K].
        what: Config key or file they came from; it opens every message.

    Returns:
        float64 array [K], summing to 1 (what a user rounded away is divided out).

    Raises:
        ValueError: If a value is negative or not finite, or the sum is not 1 within 1e-6 a domain.
    """
    weights_K = np.array(values, dtype=np.float64)
    if weights_K.ndim != 1 or weights_K.size == 0:
        raise ValueError(f"{what}: expected one weight a domain, got shape {weights_K.shape}")
    if not np.all(np.isfinite(weights_K)) or np.any(weights_K < 0):
        raise ValueError(f"{what}: no distribution: weights must be finite and not negative, got {weights_K.tolist()}")
    total = float(weights_K.sum())
    if abs(total - 1.0) > SUM_TOLERANCE * weights_K.size:
        raise ValueError(f"{what}: no distribution: the weights sum to {total:.6g}, expected 1; divide each by the sum")
    return weights_K if abs(total - 1.0) < _ROUNDING else weights_K / total


def effective_num_domains(weights_K: np.ndarray) -> float:
    """Return exp(entropy): K for uniform weights, 1 when one domain has everything.

    Source: docs/method.md section 8 (the perplexity of the mixture; Hill number of order 1).
    """
    positive = weights_K[weights_K > 0]
    return float(np.exp(-np.sum(positive * np.log(positive))))


def kl_divergence(weights_K: np.ndarray, base_K: np.ndarray) -> float:
    """Return KL(weights || base) in nats; infinite where a domain has weight but no base weight."""
    used = weights_K > 0
    if np.any(base_K[used] <= 0):
        return float("inf")
    return float(np.sum(weights_K[used] * np.log(weights_K[used] / base_K[used])))


def project_to_bounds(weights_K: np.ndarray, *, lower_K: np.ndarray, upper_K: np.ndarray) -> np.ndarray:
    """Return the weights within bounds that are nearest in KL divergence.

    The solution is clip(c * weights, lower, upper) with the one c that makes the sum 1, so domains that touch no bound
    keep their ratios. Each round fixes domains that certainly end at a bound: when the clipped sum is above 1, c must
    fall, and a domain below its lower bound now ends at that bound.

    Example: (.70, .28, .02) with a floor of .10 -> (.70, .28) * .90 / .98 = (.643, .257) and .10.

    Args:
        weights_K: Weights, shape [K], summing to 1.
        lower_K: Smallest weights, with sum <= 1.
        upper_K: Largest weights, with sum >= 1 and nowhere below `lower_K`.

    Raises:
        ValueError: If no weights satisfy the bounds.
    """
    if lower_K.sum() > 1 + 1e-9 or upper_K.sum() < 1 - 1e-9 or np.any(lower_K > upper_K):
        raise ValueError(f"no weights lie between {lower_K.tolist()} and {upper_K.tolist()} and sum to 1")
    if np.all((weights_K >= lower_K) & (weights_K <= upper_K)):
        return weights_K.copy()
    relative_K = np.maximum(weights_K, _SMALLEST_FREE_WEIGHT)
    fixed_K = np.zeros_like(relative_K)
    is_free_K = np.ones(relative_K.shape, dtype=bool)
    for _ in range(len(relative_K)):  # every round but the last fixes at least one domain
        scaled_K = relative_K * ((1.0 - fixed_K.sum()) / relative_K[is_free_K].sum())
        is_low_K, is_high_K = is_free_K & (scaled_K < lower_K), is_free_K & (scaled_K > upper_K)
        if not np.any(is_low_K | is_high_K):
            return np.where(is_free_K, scaled_K, fixed_K)
        is_sum_above = (lower_K - scaled_K)[is_low_K].sum() >= (scaled_K - upper_K)[is_high_K].sum()
        is_fixed_K, bound_K = (is_low_K, lower_K) if is_sum_above else (is_high_K, upper_K)
        fixed_K = np.where(is_fixed_K, bound_K, fixed_K)
        is_free_K &= ~is_fixed_K
        if not np.any(is_free_K):
            break
    return normalise(fixed_K)
