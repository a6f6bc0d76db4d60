"""Means with intervals, and tests of paired differences with their correction for being several.

Every value here is one independent value: a seed's, or a target's mean over seeds (`results.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """A mean with its 95 % interval."""

    mean: float
    half_width: float
    """Half of the interval's length; NaN for a single value."""


def mean_with_interval(values: Sequence[float]) -> Mean:
    """Return the mean and Student's 95 % interval; NaN without a value.

    Worked example: 1, 2, 3: mean 2, standard error 0.577, t(2) = 4.303, so 2 +- 2.484.
    """
    if not values:
        return Mean(mean=math.nan, half_width=math.nan)
    mean = float(np.mean(values))
    if len(values) < 2:
        return Mean(mean=mean, half_width=math.nan)
    if np.ptp(values) == 0:  # scipy's interval of equal values is NaN
        return Mean(mean=mean, half_width=0.0)
    low, high = map(float, stats.t.interval(0.95, len(values) - 1, loc=mean, scale=stats.sem(values)))
    return Mean(mean=mean, half_width=(high - low) / 2)


def paired_p_value(values: Sequence[float], baseline: Sequence[float]) -> float:
    """Return the two-sided p-value of Student's paired test; NaN for fewer than two pairs, 1 where all are equal."""
    differences = np.subtract(values, baseline)
    if len(differences) < 2:
        return math.nan
    if np.ptp(differences) == 0:  # scipy's test divides by zero
        return 1.0 if differences[0] == 0 else 0.0
    return float(stats.ttest_rel(values, baseline).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for being several, by Holm's step-down rule; NaN stays and does not count.

    scipy has no such correction (1.17: only those of the false discovery rate).

    Worked example: 0.01, 0.04, 0.03 of three: 0.03, 0.06, 0.06.
    """
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    corrected, largest = [math.nan] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def difference(pairs: Sequence[tuple[float, float]]) -> Mean:
    """Return the mean of the paired differences with its interval."""
    return mean_with_interval([value - other for value, other in pairs])
