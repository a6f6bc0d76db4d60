"""Look up what every domain can supply: how many draws its cap leaves, and its next examples.

A cap on epochs is a cap on the draw counter. A domain that reached its cap has weight 0 from that draw on, and its
share goes to the others in proportion to their weights. When no domain is left, the data ends.

The sampler needs the lengths of examples in drawing order. A domain's window contains those of its next draws. How many
a batch needs is a guess: a wrong one costs time but does not change the result.

Shape legend: **K** domains, **F** candidates (the windows of all domains, one after another).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from versatune_ds.data.order.permutation import DomainOrder
from versatune_ds.data.order.sampler import Candidates, PlanSettings, WeightUnit

NO_LIMIT = np.iinfo(np.int64).max


class DataEndsError(RuntimeError):
    """Every domain with weight has reached `max_epochs_per_domain`."""


def draw_limits(orders: Sequence[DomainOrder], *, max_epochs_per_domain: float | None) -> np.ndarray:
    """Return how often each domain may be drawn, int64 [K]; half an epoch is half of the examples, rounded down."""
    if max_epochs_per_domain is None:
        return np.full(len(orders), NO_LIMIT)
    return np.array([int(max_epochs_per_domain * order.size) for order in orders], dtype=np.int64)


def check_supply(weights_K: np.ndarray, *, orders: Sequence[DomainOrder]) -> None:
    """Raise ValueError, with the domain, if an empty domain has weight."""
    for weight, order in zip(weights_K, orders, strict=True):
        if weight > 0 and order.size == 0:
            raise ValueError(f"domain {order.name!r} has no examples but weight {weight:.6g}; give it data or weight 0")


def available_weights(weights_K: np.ndarray, *, draws_K: np.ndarray, limit_K: np.ndarray) -> np.ndarray:
    """Return the weights with exhausted domains at 0 and their share passed to the others in proportion.

    Raises:
        DataEndsError: If no domain with weight may be drawn any more.
    """
    left_K = np.where(draws_K < limit_K, weights_K, 0.0)
    total = left_K.sum()
    if total <= 0:
        raise DataEndsError(
            f"data ends: every domain with weight has reached max_epochs_per_domain (draws {draws_K.tolist()})"
        )
    return left_K / total


def epochs_at_end(
    weights_K: np.ndarray, *, num_units: float, mean_cost_K: np.ndarray, size_K: np.ndarray
) -> np.ndarray:
    """Forecast how many epochs of each domain a run makes if its weights do not change.

    Args:
        weights_K: float64 [K].
        num_units: Units that the run will draw, in the unit of the weights (tokens, loss tokens or examples).
        mean_cost_K: Mean units of one example of each domain.
        size_K: Examples of each domain.

    Returns:
        float64 [K]; 0 for an empty domain. Approximate: it ignores that a capped domain's share goes to the others.
    """
    units_per_epoch_K = np.asarray(mean_cost_K, dtype=np.float64) * size_K
    wanted_K = np.asarray(weights_K, dtype=np.float64) * num_units
    return np.divide(wanted_K, units_per_epoch_K, out=np.zeros(len(wanted_K)), where=units_per_epoch_K > 0)


def expected_draws(
    weights_K: np.ndarray, *, orders: Sequence[DomainOrder], unit: WeightUnit, num_tokens: int
) -> np.ndarray:
    """Return how many draws of each domain a batch of `num_tokens` will need, with some spare, int64 [K].

    A domain is drawn in proportion to weight / mean cost; all draws together have `num_tokens` tokens.
    """
    mean_tokens_K = np.array([order.mean_tokens for order in orders])
    mean_loss_tokens_K = np.array([order.mean_loss_tokens for order in orders])
    mean_cost_K = {"tokens": mean_tokens_K, "loss_tokens": mean_loss_tokens_K, "examples": np.ones(len(orders))}[unit]
    rate_K = weights_K / np.maximum(mean_cost_K, 0.01)
    draws_K = rate_K * num_tokens / max(float((rate_K * mean_tokens_K).sum()), 1e-9)
    spare_K = 0.1 * draws_K + 4 * np.sqrt(draws_K) + 4  # the means are off by a few percent; a second try costs more
    return np.where(weights_K > 0, np.ceil(draws_K + spare_K), 0).astype(np.int64)


def open_windows(
    orders: Sequence[DomainOrder],
    *,
    first_draw_K: np.ndarray,
    count_K: np.ndarray,
    limit_K: np.ndarray,
    settings: PlanSettings,
) -> tuple[Candidates, np.ndarray, np.ndarray]:
    """Read the lengths of the next draws of every domain.

    Args:
        orders: The domains.
        first_draw_K: int64 [K], first draw of each window.
        count_K: int64 [K], draws in each window; cut at the limit.
        limit_K: int64 [K], most draws of each domain in the entire run.
        settings: Longest example allowed, and unit of a candidate's cost.

    Returns:
        The candidates, their epochs and their example indices within the domains, int64 [F] each.

    Raises:
        ValueError: If an example is empty or longer than a row.
    """
    # Sizes of the windows, and room for all candidates.
    count_K = np.minimum(count_K, np.maximum(limit_K - first_draw_K, 0))
    start_K = np.concatenate([[0], np.cumsum(count_K)])
    epoch_F, index_F = np.empty(start_K[-1], dtype=np.int64), np.empty(start_K[-1], dtype=np.int64)
    length_F, cost_F = np.empty(start_K[-1], dtype=np.int32), np.empty(start_K[-1], dtype=np.int32)
    # Read them, domain by domain.
    for k in np.flatnonzero(count_K):
        window = slice(start_K[k], start_K[k + 1])
        epoch_F[window], index_F[window], length_F[window] = orders[k].window(int(first_draw_K[k]), int(count_K[k]))
        cost_F[window] = _costs(orders[k], index_F[window], length_F[window], unit=settings.weight_unit)
    # Check the lengths of all domains at once; only if one is impossible, find its domain.
    if len(length_F) and not 1 <= length_F.min() <= length_F.max() <= settings.row_tokens:
        for k in np.flatnonzero(count_K):
            window = slice(start_K[k], start_K[k + 1])
            what = f"domain {orders[k].name!r}, example"
            check_lengths(length_F[window], indices=index_F[window], row_tokens=settings.row_tokens, what=what)
    candidates = Candidates(start_K, length_F, cost_F, first_draw_K + count_K >= limit_K)
    return candidates, epoch_F, index_F


def _costs(order: DomainOrder, indices: np.ndarray, lengths: np.ndarray, *, unit: WeightUnit) -> np.ndarray | int:
    if unit == "loss_tokens":
        return np.take(order.loss_lengths, indices)
    return lengths if unit == "tokens" else 1


def check_lengths(lengths: np.ndarray, *, indices: np.ndarray, row_tokens: int, what: str) -> None:
    """Raise ValueError, with `what` (domain and kind) and the example, if a length is outside 1..row_tokens."""
    impossible = np.flatnonzero((lengths < 1) | (lengths > row_tokens))
    if len(impossible):
        i = impossible[0]
        raise ValueError(
            f"{what} {indices[i]}: {lengths[i]} tokens, expected 1..{row_tokens} (data.row_tokens); prepare the data "
            "again with this row length"
        )
