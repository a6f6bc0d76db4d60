"""Look ahead: read the lengths of the next examples of every domain, as many as a batch is likely to draw.

The sampler needs the lengths of examples in drawing order. A domain's window contains those of its next draws. How many
a batch needs is a guess: a wrong one costs time but does not change the result.

Shape legend: **K** domains, **F** candidates (the windows of all domains, one after another).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from versatune_ds.data.order.permutation import DomainOrder
from versatune_ds.data.order.sampler import Candidates, WeightUnit


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """The next draws of every domain.

    Attributes:
        candidates: Their lengths and costs, for the sampler.
        epoch_F: int64 [F].
        index_F: int64 [F], example index within the domain.
    """

    candidates: Candidates
    epoch_F: np.ndarray
    index_F: np.ndarray


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
    unit: WeightUnit,
    row_tokens: int,
) -> Windows:
    """Read the lengths of the next draws of every domain.

    Args:
        orders: The domains.
        first_draw_K: int64 [K], first draw of each window.
        count_K: int64 [K], draws in each window; cut at the limit.
        limit_K: int64 [K], most draws of each domain in the entire run.
        unit: Unit of a candidate's cost.
        row_tokens: Longest example allowed.

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
        _check_lengths(orders[k], index_F[window], length_F[window], row_tokens=row_tokens)
        cost_F[window] = _costs(orders[k], index_F[window], length_F[window], unit=unit)
    candidates = Candidates(start_K, length_F, cost_F, first_draw_K + count_K >= limit_K)
    return Windows(candidates=candidates, epoch_F=epoch_F, index_F=index_F)


def _costs(order: DomainOrder, indices: np.ndarray, lengths: np.ndarray, *, unit: WeightUnit) -> np.ndarray | int:
    """Return the cost of each candidate in the unit of the weights."""
    if unit == "loss_tokens":
        return np.take(order.loss_lengths, indices)
    return lengths if unit == "tokens" else 1


def _check_lengths(order: DomainOrder, indices: np.ndarray, lengths: np.ndarray, *, row_tokens: int) -> None:
    """Raise ValueError, with domain and example, if a length is outside 1..row_tokens."""
    if lengths.min() >= 1 and lengths.max() <= row_tokens:
        return
    bad = int(np.flatnonzero((lengths < 1) | (lengths > row_tokens))[0])
    raise ValueError(
        f"domain {order.name!r}, example {indices[bad]}: {lengths[bad]} tokens, expected 1..{row_tokens} "
        "(data.row_tokens); prepare the data again with this row length"
    )
