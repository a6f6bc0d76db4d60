"""Improve a mixture by small steps, with a predictor in closed form.

Two methods, one after another. SLSQP follows the gradients of the goal and of every bound, and so finds a mixture at
which bounds bind; it may fail where a prediction has a kink. Exchanges of weight between two domains need no gradient
and never get worse, but stop early where a bound binds. Gradients are finite differences along the simplex.

Shape legend: **N** mixtures, **K** domains.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize

from versatune_ds.mixture.planning.goal import Goal
from versatune_ds.mixture.planning.limits import Limits
from versatune_ds.mixture.planning.predicted_mixtures import PredictedMixtures
from versatune_ds.mixture.planning.predictor import Predicted, Predictor

_DIFFERENCE = 1e-5
_MOST_ITERATIONS, _MOST_CALLS = 200, 2_000
_LARGEST_EXCHANGE, _SMALLEST_EXCHANGE = 0.04, 0.0005
_MOST_EXCHANGES = 500


class _StuckError(Exception):
    """SLSQP does not end by itself: where no mixture meets the bounds, it may ask for the same one for ever (1.17)."""


Values = Callable[[Predicted], np.ndarray]
"""From predictions of N mixtures to the numbers [N,M] that the optimiser works with."""


def follow_gradients(predictor: Predictor, goal: Goal, start_K: np.ndarray, *, limits: Limits) -> np.ndarray:
    """Return a mixture within the limits near a start that serves the goal better, or the start."""
    bounded_K = np.isfinite(goal.bounds_K) & ~np.isnan(goal.base_losses_K)

    def values(predicted: Predicted) -> np.ndarray:
        return np.column_stack([goal.objective(predicted), goal.excess(predicted)[:, bounded_K]])

    return _minimise(predictor, values, start_K, limits=limits)


def lower_the_worst(predictor: Predictor, goal: Goal, start_K: np.ndarray, *, limits: Limits) -> np.ndarray:
    """Return a mixture within the limits near a start whose worst excess is smaller, or the start.

    One more variable, the worst excess t, makes this smooth: minimise t where no excess is above t.
    """
    bounded_K = np.isfinite(goal.bounds_K) & ~np.isnan(goal.base_losses_K)
    if not np.any(bounded_K):
        return start_K

    def values(predicted: Predicted) -> np.ndarray:
        return goal.excess(predicted)[:, bounded_K]

    return _minimise(predictor, values, start_K, limits=limits, is_minimax=True)


def _minimise(
    predictor: Predictor, values: Values, start_K: np.ndarray, *, limits: Limits, is_minimax: bool = False
) -> np.ndarray:
    """Minimise the first value where the others are at most 0, or the largest of all values."""
    num_domains = len(start_K)
    known: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}
    num_calls, last_K = 0, start_K

    def at(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the values [M] and their derivatives [M,K] towards each domain, of the mixture in x."""
        nonlocal num_calls, last_K
        num_calls += 1
        if num_calls > _MOST_CALLS or not np.all(np.isfinite(x)):
            raise _StuckError
        key = x[:num_domains].tobytes()
        if key not in known:
            known[key] = _values_and_slopes(predictor, values, x[:num_domains])
        last_K = x[:num_domains].copy()
        return known[key]

    bounds = list(zip(limits.lower_K, limits.upper_K, strict=True))
    sums_to_one = {
        "type": "eq",
        "fun": lambda x: x[:num_domains].sum() - 1.0,
        "jac": lambda x: np.concatenate([np.ones(num_domains), np.zeros(len(x) - num_domains)]),
    }
    if is_minimax:
        start = np.append(start_K, at(start_K)[0].max())
        bounds.append((None, None))
        within = {
            "type": "ineq",
            "fun": lambda x: x[-1] - at(x)[0],
            "jac": lambda x: np.column_stack([-at(x)[1], np.ones(len(at(x)[0]))]),
        }
        objective = lambda x: (x[-1], np.append(np.zeros(num_domains), 1.0))  # noqa: E731
    else:
        start = start_K
        within = {"type": "ineq", "fun": lambda x: -at(x)[0][1:], "jac": lambda x: -at(x)[1][1:]}
        objective = lambda x: (at(x)[0][0], at(x)[1][0])  # noqa: E731
    constraints = [sums_to_one, within] if len(at(start_K)[0]) > 1 or is_minimax else [sums_to_one]
    with contextlib.suppress(_StuckError):
        last_K = minimize(
            objective, start, jac=True, method="SLSQP", bounds=bounds, constraints=constraints,
            options={"maxiter": _MOST_ITERATIONS, "ftol": 1e-10},
        ).x[:num_domains]  # fmt: skip
    last_K = np.maximum(np.nan_to_num(last_K), 0.0)
    return limits.nearest(last_K[None] / last_K.sum())[0] if last_K.sum() > 0 else start_K


def _values_and_slopes(predictor: Predictor, values: Values, weights_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return values [M] and slopes [M,K], in one batch of K + 1 predictions.

    Entry k of a slope is the derivative towards domain k, along w + h (e_k - w), which stays on the simplex. For a
    direction d of sum 0, sum_k d_k slope_k = gradient . d - (sum_k d_k) (gradient . w) = gradient . d. So it serves as
    the gradient, since the optimiser moves along the simplex alone.
    """
    weights_K = np.maximum(weights_K, 0.0)
    weights_K = weights_K / weights_K.sum()
    towards_KK = weights_K + _DIFFERENCE * (np.eye(len(weights_K)) - weights_K)
    values_NM = values(predictor.predict(np.concatenate([weights_K[None], towards_KK])))
    return values_NM[0], ((values_NM[1:] - values_NM[0]) / _DIFFERENCE).T


def exchange(mixtures: PredictedMixtures, goal: Goal, best: int, *, limits: Limits) -> int:
    """Move weight between two domains as long as that is better, in ever smaller amounts; return the best index.

    Every exchange of one amount is predicted in one batch, and the best of them is made.
    """
    amount, num_rounds = _LARGEST_EXCHANGE, 0
    while amount >= _SMALLEST_EXCHANGE and num_rounds < _MOST_EXCHANGES:
        num_rounds += 1
        around_NK = exchanges(mixtures.weights_NK[best], amount=amount, limits=limits)
        indices_N = np.concatenate([[best], mixtures.add(around_NK)]) if len(around_NK) else np.array([best])
        better = int(indices_N[goal.order(mixtures.predicted_at(indices_N))[0]])
        if better == best:
            amount /= 2
        best = better
    return best


def exchanges(weights_K: np.ndarray, *, amount: float, limits: Limits) -> np.ndarray:
    """Return the mixtures in which one domain gives up to an amount to another, within the limits, [N,K]."""
    num_domains = len(weights_K)
    around = []
    for giver in range(num_domains):
        for taker in range(num_domains):
            room = min(weights_K[giver] - limits.lower_K[giver], limits.upper_K[taker] - weights_K[taker], amount)
            if giver != taker and room > 1e-6:
                moved_K = weights_K.copy()
                moved_K[giver] -= room
                moved_K[taker] += room
                around.append(moved_K)
    return np.array(around).reshape(-1, num_domains)
