"""Plan one optimizer step: which examples go into which rows, for all ranks at once.

A plan is a pure function of (seed, weights, state). It reads only lengths and takes milliseconds. Every rank computes
the same plan and reads its own rows, so no index is communicated. The world size does not matter: row r of the batch is
the same on one rank and on a thousand.

    weights --> draws in order --> the longest prefix that fits --> rows           state after = K counters, K deficits
             (sampler, window)        (packing)

Shape legend: **K** domains, **E** examples of the batch in row order, **n** draws in drawing order, **R** rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from versatune_ds.data.order.draws import Draws, draw_batch, sum_by_domain
from versatune_ds.data.order.packing import order_by_place, order_rows_by_cost, pack_prefix, stable_order
from versatune_ds.data.order.permutation import DomainOrder
from versatune_ds.data.order.sampler import PlanSettings, SamplerState


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The places of examples in packed rows, sorted by row, then by offset."""

    domain_id_E: np.ndarray
    """int32 [E]."""
    index_E: np.ndarray
    """int64 [E], example index within its domain."""
    length_E: np.ndarray
    """int32 [E], tokens."""
    loss_length_E: np.ndarray
    """int32 [E], tokens that bear loss."""
    row_E: np.ndarray
    """int64 [E], row of the batch."""
    offset_E: np.ndarray
    """int64 [E], token of the row at which the example begins."""

    def rows(self, first: int, last: int) -> slice:
        """Return the slice of the examples in rows first..last-1."""
        return slice(*np.searchsorted(self.row_E, [first, last]).tolist())


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """The batch of one optimizer step, the same on every rank."""

    step: int
    weights_K: np.ndarray
    """float64 [K], requested weights."""
    placement: Placement
    """Which examples are where."""
    epoch_E: np.ndarray
    """int64 [E], epoch of each example in its domain."""
    num_rows: int
    """Rows of the batch, R."""
    row_tokens: int
    num_tokens_K: np.ndarray
    """int64 [K], tokens of each domain."""
    num_loss_tokens_K: np.ndarray
    """int64 [K], tokens of each domain that bear loss."""
    requested_units_K: np.ndarray
    """float64 [K], requested units; the share of exhausted domains goes to the others."""
    realised_units_K: np.ndarray
    """int64 [K], units drawn."""
    exhausted: tuple[int, ...]
    """Ids of domains that could not be drawn for all or part of the step."""
    is_last: bool
    """Whether the data ended within the step, so that the batch is not full."""
    state_after: SamplerState
    """State from which the next step is planned."""

    @property
    def num_examples(self) -> int:
        """Return the number of examples, E."""
        return len(self.epoch_E)

    @property
    def num_loss_tokens_global(self) -> int:
        """Return the loss tokens of the step over all ranks and micro-steps, by which the loss sum is divided."""
        return int(self.num_loss_tokens_K.sum())

    @property
    def fill(self) -> float:
        """Return the share of the rows' tokens that are not padding."""
        return int(self.num_tokens_K.sum()) / (self.num_rows * self.row_tokens)


def plan_step(
    state: SamplerState, weights_K: np.ndarray, *, step: int, orders: Sequence[DomainOrder], settings: PlanSettings
) -> StepPlan:
    """Plan the batch of a step.

    Args:
        state: The sampler's state before the step.
        weights_K: float64 [K], non-negative, summing to 1.
        step: Number of the step; it does not change what is drawn.
        orders: One per domain, in id order.
        settings: Shape of the batch.

    Raises:
        ValueError: If the weights are no distribution, an empty domain has weight, or an example is too long.
        DataEndsError: If every domain with weight has reached its cap.
    """
    # Draw as many examples as may fit.
    weights_K = np.asarray(weights_K, dtype=np.float64)
    draws = draw_batch(state, weights_K, orders=orders, settings=settings)
    # Pack the longest prefix; the rest counts as not drawn.
    row_n, offset_n = pack_prefix(draws.length_n, num_rows=settings.rows_per_batch, row_tokens=settings.row_tokens)
    draws = draws.prefix(len(row_n))
    placement, epoch_E = _place(draws, row_n, offset_n, orders=orders, settings=settings)
    num_domains = len(orders)
    return StepPlan(
        step=step,
        weights_K=weights_K,
        placement=placement,
        epoch_E=epoch_E,
        num_rows=settings.rows_per_batch,
        row_tokens=settings.row_tokens,
        num_tokens_K=sum_by_domain(placement.domain_id_E, placement.length_E, num_domains),
        num_loss_tokens_K=sum_by_domain(placement.domain_id_E, placement.loss_length_E, num_domains),
        requested_units_K=draws.requested_units_K,
        realised_units_K=draws.realised_units_K,
        exhausted=draws.exhausted,
        is_last=draws.is_last,
        state_after=draws.state_after(state),
    )


def _place(
    draws: Draws, row_n: np.ndarray, offset_n: np.ndarray, *, orders: Sequence[DomainOrder], settings: PlanSettings
) -> tuple[Placement, np.ndarray]:
    """Return the placement of draws, with rows ordered by cost, and the epochs in the same order."""
    row_n = order_rows_by_cost(row_n, draws.length_n, num_rows=settings.rows_per_batch)[row_n]
    by_row = order_by_place(row_n, offset_n, num_rows=settings.rows_per_batch, row_tokens=settings.row_tokens)
    domain_id_E, index_E = draws.domain_n[by_row], draws.index_n[by_row]
    placement = Placement(
        domain_id_E=domain_id_E,
        index_E=index_E,
        length_E=draws.length_n[by_row],
        loss_length_E=_loss_lengths(domain_id_E, index_E, orders=orders),
        row_E=row_n[by_row],
        offset_E=offset_n[by_row],
    )
    return placement, draws.epoch_n[by_row]


def _loss_lengths(domain_id_E: np.ndarray, index_E: np.ndarray, *, orders: Sequence[DomainOrder]) -> np.ndarray:
    """Return the number of loss tokens of each example, int32 [E]."""
    loss_length_E = np.empty(len(index_E), dtype=np.int32)
    borders = np.cumsum(np.bincount(domain_id_E, minlength=len(orders)))[:-1]
    for order, examples in zip(orders, np.split(stable_order(domain_id_E, len(orders)), borders), strict=True):
        if len(examples):
            loss_length_E[examples] = np.take(order.loss_lengths, index_E[examples])
    return loss_length_E
