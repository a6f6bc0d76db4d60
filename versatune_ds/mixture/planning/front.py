"""The front of mean loss against the worst domain: what a plan can trade, and where known mixtures lie beside it.

Shape legend: **N** mixtures, **K** domains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from versatune_ds.mixture.planning.goal import Goal
from versatune_ds.mixture.planning.limits import Limits
from versatune_ds.mixture.planning.local_search import follow_gradients, lower_the_worst
from versatune_ds.mixture.planning.predicted_mixtures import PredictedMixtures
from versatune_ds.mixture.planning.predictor import Predictor

NUM_POINTS = 20
"""Points of the front that are kept, besides those with a label."""
_NUM_BOUNDS = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrontPoint:
    """A mixture, its mean loss, and the domain whose loss rises most, or falls least."""

    weights_K: np.ndarray
    mean: float
    """Mean predicted loss of the measured domains, in nats per loss token."""
    worst: float
    """Largest predicted change of a domain's loss, as a share of the base model's."""
    worst_id: int
    label: str | None = None
    """A name, such as uniform; None for a point of the front without one."""


def fill_front(predictor: Predictor, goal: Goal, mixtures: PredictedMixtures, *, limits: Limits) -> None:
    """Predict the mixtures of lowest mean loss under a few bounds that are the same for all domains.

    Only for a predictor in closed form: with a costly one the front consists of what the search asked for.
    """
    free = replace(goal, purpose="mean", target_id=None, bounds_K=np.full(len(goal.bounds_K), np.inf))
    zero = replace(free, bounds_K=np.where(np.isnan(goal.base_losses_K), np.inf, 0.0))
    within_N = np.flatnonzero(limits.contain(mixtures.weights_NK))
    start_K = mixtures.weights_NK[within_N[free.order(mixtures.predicted_at(within_N))[0]]]
    lowest_K = follow_gradients(predictor, free, start_K, limits=limits)
    safest_K = lower_the_worst(predictor, zero, start_K, limits=limits)
    ends = mixtures.predicted_at(mixtures.add([lowest_K, safest_K]))
    lowest, safest = np.max(zero.excess(ends), axis=1)
    if not lowest > safest:
        return
    for share in np.linspace(0.0, 1.0, _NUM_BOUNDS + 2)[1:-1]:
        bound = safest + share * (lowest - safest)
        bounded = replace(zero, bounds_K=np.where(np.isnan(goal.base_losses_K), np.inf, bound))
        start_K = safest_K + share * (lowest_K - safest_K)
        mixtures.add(follow_gradients(predictor, bounded, start_K, limits=limits))


def front(
    mixtures: PredictedMixtures, goal: Goal, *, limits: Limits, labels: Mapping[str, int], num_points: int = NUM_POINTS
) -> tuple[FrontPoint, ...]:
    """Return the mixtures that no other one beats in both the mean and the worst domain, and those with a label.

    Args:
        mixtures: All predicted mixtures; the front consists of those within the limits.
        goal: Its base losses are what changes are relative to.
        limits: Smallest and largest weights.
        labels: Index in `mixtures` of the mixtures that are shown wherever they lie.
        num_points: Most points without a label; of more, those are kept that are spread evenly along the front.

    Returns:
        Points by rising mean loss.
    """
    means_N = np.nanmean(mixtures.predicted.losses_NK, axis=1)
    changes_NK = goal.changes(mixtures.predicted)
    worst_N = np.nanmax(changes_NK, axis=1)
    within_N = np.flatnonzero(limits.contain(mixtures.weights_NK))
    kept_N = within_N[_non_dominated(means_N[within_N], worst_N[within_N])]
    kept_N = kept_N[_spread(means_N[kept_N], worst_N[kept_N], num=num_points)]

    def point(i: int, label: str | None = None) -> FrontPoint:
        worst_id = int(np.nanargmax(changes_NK[i]))
        mean, worst = float(means_N[i]), float(worst_N[i])
        return FrontPoint(weights_K=mixtures.weights_NK[i], mean=mean, worst=worst, worst_id=worst_id, label=label)

    points = [point(i) for i in kept_N.tolist() if i not in labels.values()]
    points += [point(i, label) for label, i in labels.items()]
    return tuple(sorted(points, key=lambda point: (point.mean, point.worst)))


def _non_dominated(means_N: np.ndarray, worst_N: np.ndarray) -> np.ndarray:
    """Return the indices of the points that no other one beats in both, by rising mean."""
    order_N = np.lexsort((worst_N, means_N))
    before_N = np.concatenate([[np.inf], np.minimum.accumulate(worst_N[order_N])[:-1]])
    return order_N[worst_N[order_N] < before_N]


def _spread(means_N: np.ndarray, worst_N: np.ndarray, *, num: int) -> np.ndarray:
    """Return the indices of at most `num` points of a front, spread evenly along it; both ends are kept."""
    if len(means_N) <= num:
        return np.arange(len(means_N))
    steps = [np.diff(values) / max(np.ptp(values), 1e-300) for values in (means_N, worst_N)]
    length_N = np.concatenate([[0.0], np.cumsum(np.hypot(*steps))])
    wanted = np.linspace(0.0, length_N[-1], num)
    return np.unique(np.abs(length_N[:, None] - wanted).argmin(axis=0))
