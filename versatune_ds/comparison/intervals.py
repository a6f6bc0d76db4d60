"""Say how far a mean over few repetitions can be trusted.

The one idea: runs with the same seed (and target) share base model, data and order of the seeds, so two policies are
compared on their differences, pair by pair, which are far steadier than either mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """Hold a mean with its 95 % interval; the interval is NaN for a single value."""

    mean: float
    low: float
    high: float
    num_values: int

    @property
    def half_width(self) -> float:
        """Return half of the interval's length."""
        return (self.high - self.low) / 2


def mean_with_interval(values: Sequence[float]) -> Mean:
    """Return the mean and Student's 95 % interval.

    Worked example: 1, 2, 3: mean 2, standard error 0.577, t(2) = 4.303, so 2 +- 2.484.
    """
    array = np.asarray(values, dtype=np.float64)
    mean, half = float(array.mean()), math.nan
    if len(array) > 1:
        half = float(stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array)))
    return Mean(mean=mean, low=mean - half, high=mean + half, num_values=len(array))


def paired_p_value(values: Sequence[float], baseline: Sequence[float]) -> float:
    """Return the two-sided p-value of Student's paired test; NaN for fewer than two pairs, 1 where all are equal."""
    differences = np.asarray(values, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    if len(differences) < 2:
        return math.nan
    if np.all(differences == 0):
        return 1.0
    if np.ptp(differences) == 0:
        return 0.0
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for being several, by Holm's step-down rule; NaN stays and does not count.

    Worked example: 0.01, 0.04, 0.03 of three: 0.03, 0.06, 0.06.
    """
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    corrected, largest = [math.nan] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected
