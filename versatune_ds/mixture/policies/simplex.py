"""Arithmetic on weights that every rule shares: divide by the sum, fill unknown values, take an exponential step.

Shape legend: **K** domains.
"""

from __future__ import annotations

import numpy as np


def normalise(values_K: np.ndarray) -> np.ndarray:
    """Return non-negative values [K] divided by their sum.

    Raises:
        ValueError: If the sum is not positive and finite.
    """
    total = float(np.sum(values_K))
    if not np.isfinite(total) or total <= 0:
        raise ValueError(f"cannot normalise values with sum {total}: {np.asarray(values_K).tolist()}")
    return np.asarray(values_K, dtype=np.float64) / total


def neutral(values_K: np.ndarray) -> np.ndarray:
    """Return values with NaN (never measured) replaced by the mean of the others, or by 0 where there are none."""
    is_unknown_K = np.isnan(values_K)
    if not np.any(is_unknown_K):
        return values_K
    return np.where(is_unknown_K, 0.0 if np.all(is_unknown_K) else np.nanmean(values_K), values_K)


def exponentiated(weights_K: np.ndarray, exponent_K: np.ndarray) -> np.ndarray:
    """Return P * exp(exponent), normalised; the largest exponent is subtracted first, so that nothing overflows."""
    return normalise(weights_K * np.exp(np.minimum(exponent_K - np.max(exponent_K[weights_K > 0]), 0.0)))


def smoothed(weights_K: np.ndarray, *, share: float) -> np.ndarray:
    """Return (1 - share) * weights + share / K."""
    return (1.0 - share) * weights_K + share / len(weights_K)


def equal_weights(num_domains: int) -> np.ndarray:
    """Return 1/K for each of K domains."""
    return np.full(num_domains, 1.0 / num_domains)


def inverse_weights(prior_K: np.ndarray) -> np.ndarray:
    """Return the paper's `inverse` baseline: 1 - prior, normalised.

    Source: VersaTune (arXiv 2411.11266), baselines; docs/method.md section 5.
    """
    return normalise(1.0 - prior_K) if len(prior_K) > 1 else np.ones(1)


def target_weights(target_id: int, *, share: float, num_domains: int) -> np.ndarray:
    """Return a fixed share for one domain and equal shares of the rest for the others.

    Source: VersaTune (arXiv 2411.11266), baselines `target_only` (share 1) and `target_uniform`; docs/method.md
    section 5.
    """
    weights_K = np.full(num_domains, (1.0 - share) / max(num_domains - 1, 1))
    weights_K[target_id] = share if num_domains > 1 else 1.0
    return weights_K


def with_share(weights_K: np.ndarray, target_id: int, *, share: float) -> np.ndarray:
    """Return weights with a given share for one domain; the others keep their ratios.

    Example: (.2, .3, .5) with .6 for the first -> (.6, .15, .25).
    """
    others_K = weights_K.copy()
    others_K[target_id] = 0.0
    if others_K.sum() <= 0:
        return target_weights(target_id, share=share, num_domains=len(weights_K))
    after_K = (1.0 - share) * normalise(others_K)
    after_K[target_id] = share
    return after_K
