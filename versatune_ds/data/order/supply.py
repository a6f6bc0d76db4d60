"""Limit how often each domain is drawn, and pass its share to the others when it reaches the limit.

A cap on epochs is a cap on the draw counter. A domain that reached its cap has weight 0 from that draw on, and its
share goes to the others in proportion to their weights. When no domain is left, the data ends.

Shape legend: **K** domains.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from versatune_ds.data.order.permutation import DomainOrder

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
