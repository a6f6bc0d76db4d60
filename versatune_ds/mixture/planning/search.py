"""Search the simplex for the mixture that serves a goal best, under bounds; the same seed gives the same mixture.

A predictor in closed form is asked for thousands of mixtures, and the best of them are improved by small steps. A
costly one is asked for as many as it may be: first mixtures spread over the simplex, then, in rounds, those that a
quadratic fitted to all so far holds for best, and some around the best.

Shape legend: **N** mixtures, **K** domains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from versatune_ds.mixture.planning.goal import Goal
from versatune_ds.mixture.planning.limits import Limits
from versatune_ds.mixture.planning.local_search import exchange, follow_gradients, lower_the_worst
from versatune_ds.mixture.planning.predicted_mixtures import PredictedMixtures
from versatune_ds.mixture.planning.predictor import Predicted, Predictor
from versatune_ds.mixture.planning.surrogate import QuadraticFit

NUM_CHEAP_CANDIDATES = 16_384
"""Random mixtures that a predictor in closed form is asked for."""
_NUM_SURROGATE_CANDIDATES = 2_048
_NUM_STARTS = 4
_DISTINCT = 0.2
"""Sum of the differences of two starts' weights, at least: a tenth of all weight lies elsewhere."""
_CONCENTRATIONS = (0.5, 1.0, 3.0)
"""Of the Dirichlet distributions that candidates are drawn from: near the edges, everywhere, near the middle."""
_ROUND = 8
"""Costly predictions between two fits of the quadratic."""
_SHARE_SPREAD = 0.5
"""Share of costly predictions that are spread over the simplex before the first fit."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """The best mixture of a search, and all that were predicted."""

    weights_K: np.ndarray
    predicted: Predicted
    """Of the best mixture, [1,K]."""
    mixtures: PredictedMixtures
    named: Mapping[str, int]
    """Index in `mixtures` of the mixtures that were given by name."""
    worst_excess: float
    """How far the worst domain lies beyond its bound, relative to the base model's loss; 0 where all bounds are met."""
    worst_id: int | None
    """That domain; None where all bounds are met."""


def search(
    predictor: Predictor,
    goal: Goal,
    *,
    limits: Limits,
    named: Mapping[str, np.ndarray],
    seed: int,
    num_predictions: int,
    num_elsewhere: int = 0,
    solution_K: np.ndarray | None = None,
) -> Found:
    """Return the best mixture within the limits that a seeded search finds.

    Where no mixture meets the bounds, it is the one whose worst domain is least beyond its bound.

    Args:
        predictor: Predicts the losses.
        goal: Purpose and bounds.
        limits: Smallest and largest weights.
        named: Mixtures to predict in any case, such as uniform, float64 [K]; they need not lie within the limits, and
            their nearest mixtures within them are candidates.
        seed: Of the random candidates.
        num_predictions: Most predictions of a costly predictor.
        num_elsewhere: Further ones that its caller makes, for the message where there are too few.
        solution_K: A mixture within the limits that is best by calculation, one more candidate; None for none.

    Raises:
        ValueError: If a costly predictor may be asked for fewer mixtures than are named, and one a domain.
    """
    num_domains = len(limits.lower_K)
    mixtures = PredictedMixtures(predictor, num_domains=num_domains)
    given_NK = np.array(list(named.values())).reshape(-1, num_domains)
    structured_NK = np.concatenate([limits.nearest(given_NK), corners(limits)])
    if solution_K is not None:
        structured_NK = np.concatenate([structured_NK, solution_K[None]])
    rng = np.random.default_rng(seed)
    if predictor.is_costly:
        _check_num_predictions(num_predictions, least=len(given_NK) + len(structured_NK), num_elsewhere=num_elsewhere)
        indices = mixtures.add(given_NK)
        mixtures.add(structured_NK)
        _search_costly(predictor, goal, mixtures, limits=limits, rng=rng, num_predictions=num_predictions)
    else:
        indices = mixtures.add(given_NK)
        mixtures.add(np.concatenate([structured_NK, candidates(rng, NUM_CHEAP_CANDIDATES, limits=limits)]))
        _search_cheap(predictor, goal, mixtures, limits=limits)
    best = _best_within(mixtures, goal, limits)
    predicted = mixtures.predicted_at(np.array([best]))
    worst = float(goal.worst_excess(predicted)[0])
    return Found(
        weights_K=mixtures.weights_NK[best],
        predicted=predicted,
        mixtures=mixtures,
        named=dict(zip(named, map(int, indices), strict=True)),
        worst_excess=worst,
        worst_id=int(np.argmax(goal.excess(predicted)[0])) if worst > 0 else None,
    )


def _check_num_predictions(num_predictions: int, *, least: int, num_elsewhere: int) -> None:
    if num_predictions < least:
        raise ValueError(
            f"--predictions {num_predictions + num_elsewhere}: expected at least {least + num_elsewhere}: those of "
            "uniform, the prior and each domain alone come first"
        )


def corners(limits: Limits) -> np.ndarray:
    """Return the mixtures halfway from uniform to each domain alone, within the limits, [K,K]."""
    num_domains = len(limits.lower_K)
    return limits.nearest(0.5 * np.eye(num_domains) + 0.5 / num_domains)


def candidates(rng: np.random.Generator, num: int, *, limits: Limits) -> np.ndarray:
    """Return random mixtures within the limits, [N,K]."""
    num_domains = len(limits.lower_K)
    drawn = [
        rng.dirichlet(np.full(num_domains, concentration), size=len(part))
        for concentration, part in zip(_CONCENTRATIONS, np.array_split(np.arange(num), 3), strict=True)
    ]
    return limits.nearest(np.concatenate(drawn))


def _best_within(mixtures: PredictedMixtures, goal: Goal, limits: Limits) -> int:
    """Return the index of the best mixture within the limits."""
    within_N = np.flatnonzero(limits.contain(mixtures.weights_NK))
    return int(within_N[goal.order(mixtures.predicted_at(within_N))[0]])


def _search_cheap(predictor: Predictor, goal: Goal, mixtures: PredictedMixtures, *, limits: Limits) -> None:
    """Improve the best of the candidates by small steps; the results are added to `mixtures`."""
    starts_NK = _distinct_best(mixtures, goal, limits)
    best = _best_within(mixtures, goal, limits)
    # Where nothing meets the bounds, look for a mixture that does, and start from there.
    if goal.worst_excess(mixtures.predicted_at(np.array([best])))[0] > 0:
        starts_NK = np.array([lower_the_worst(predictor, goal, start_K, limits=limits) for start_K in starts_NK])
        mixtures.add(starts_NK)
        best = _best_within(mixtures, goal, limits)
    if goal.worst_excess(mixtures.predicted_at(np.array([best])))[0] == 0:
        mixtures.add([follow_gradients(predictor, goal, start_K, limits=limits) for start_K in starts_NK])
    exchange(mixtures, goal, _best_within(mixtures, goal, limits), limits=limits)


def _distinct_best(mixtures: PredictedMixtures, goal: Goal, limits: Limits) -> np.ndarray:
    """Return the best few mixtures that differ by more than a tenth of all weight, [N,K]."""
    within_N = np.flatnonzero(limits.contain(mixtures.weights_NK))
    left_NK = mixtures.weights_NK[within_N[goal.order(mixtures.predicted_at(within_N))]]
    chosen: list[np.ndarray] = []
    while len(left_NK) and len(chosen) < _NUM_STARTS:
        chosen.append(left_NK[0])
        left_NK = left_NK[np.abs(left_NK - left_NK[0]).sum(axis=1) > _DISTINCT]
    return np.array(chosen)


def _search_costly(
    predictor: Predictor,
    goal: Goal,
    mixtures: PredictedMixtures,
    *,
    limits: Limits,
    rng: np.random.Generator,
    num_predictions: int,
) -> None:
    """Ask for mixtures spread over the simplex, then for those that a quadratic holds for best; fills `mixtures`."""
    num_spread = max(int(_SHARE_SPREAD * num_predictions) - len(mixtures), 0)
    if num_spread:
        mixtures.add(candidates(rng, num_spread, limits=limits))
    sharpness = 30.0
    while len(mixtures) < num_predictions:
        num_asked = min(_ROUND, num_predictions - len(mixtures))
        best_K = mixtures.weights_NK[_best_within(mixtures, goal, limits)]
        around_NK = limits.nearest(rng.dirichlet(sharpness * best_K + 1e-3, size=num_asked))
        asked_NK = np.concatenate([_surrogate_best(mixtures, goal, limits=limits, rng=rng), around_NK])
        new = [weights_K for weights_K in asked_NK if not mixtures.is_known(weights_K)]
        mixtures.add(new[:num_asked] or candidates(rng, num_asked, limits=limits))
        sharpness *= 1.5


def _surrogate_best(mixtures: PredictedMixtures, goal: Goal, *, limits: Limits, rng: np.random.Generator) -> np.ndarray:
    """Return the mixture that a quadratic fitted to all predictions holds for best, [1,K]."""
    fit = QuadraticFit(mixtures.weights_NK, mixtures.predicted)
    by_fit = PredictedMixtures(fit, num_domains=mixtures.weights_NK.shape[1])
    by_fit.add(np.concatenate([mixtures.weights_NK, candidates(rng, _NUM_SURROGATE_CANDIDATES, limits=limits)]))
    stricter = replace(goal, bounds_K=goal.bounds_K - fit.margin_K / goal.base_losses_K)
    _search_cheap(fit, stricter, by_fit, limits=limits)
    return by_fit.weights_NK[[_best_within(by_fit, stricter, limits)]]
