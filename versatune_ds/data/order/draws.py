"""Draw the examples of one batch, also where a domain reaches its cap on the way.

A segment is one run of the sampler under fixed weights. A domain that reaches its cap ends the segment; in the next
one its share goes to the others. Any prefix of the draws is a batch too, because the state after it follows from the
segment in which it ends.

Shape legend: **K** domains, **n** draws in drawing order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from versatune_ds.data.order.packing import stable_order
from versatune_ds.data.order.permutation import DomainOrder
from versatune_ds.data.order.sampler import (
    FINISHED,
    NEEDS_WINDOW,
    WEIGHT_SCALE,
    Candidates,
    PlanSettings,
    SamplerState,
    deficit_after,
    draw,
    quantise_weights,
    settle_debts,
)
from versatune_ds.data.order.supply import (
    DataEndsError,
    available_weights,
    check_supply,
    draw_limits,
    expected_draws,
    open_windows,
)

_COLUMNS = ("domain_n", "epoch_n", "index_n", "length_n", "cost_n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """The weights from draw `first` on, and the deficits at that draw."""

    first: int
    weight_K: np.ndarray
    deficit_K: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """Consecutive draws."""

    domain_n: np.ndarray
    """int32 [n]."""
    epoch_n: np.ndarray
    """int64 [n]."""
    index_n: np.ndarray
    """int64 [n], example index within the domain."""
    length_n: np.ndarray
    """int32 [n], tokens."""
    cost_n: np.ndarray
    """int32 [n], units of the weights."""
    segments: tuple[Segment, ...]
    """Weights and deficits, in order; the first segment begins at draw 0."""
    is_last: bool
    """Whether the data ended with the last draw."""
    exhausted: tuple[int, ...]
    """Ids of domains that could not be drawn in at least one segment."""

    def prefix(self, count: int) -> Draws:
        """Return the first `count` draws, at least one."""
        segments = tuple(segment for segment in self.segments if segment.first < count)
        return Draws(
            **{name: getattr(self, name)[:count] for name in _COLUMNS},
            segments=segments,
            is_last=self.is_last and count == len(self.domain_n),
            exhausted=tuple(k for k in self.exhausted if segments[-1].weight_K[k] == 0),
        )

    def state_after(self, state: SamplerState) -> SamplerState:
        """Return the sampler's state after these draws, given the state before them."""
        last = self.segments[-1]
        num_domains = len(state.draws_K)
        served_K = sum_by_domain(self.domain_n[last.first :], self.cost_n[last.first :], num_domains)
        return SamplerState(
            draws_K=state.draws_K + np.bincount(self.domain_n, minlength=num_domains),
            deficit_K=deficit_after(last.deficit_K, last.weight_K, served_K),
        )

    @property
    def realised_units_K(self) -> np.ndarray:
        """Return the units drawn from each domain, int64 [K]."""
        return sum_by_domain(self.domain_n, self.cost_n, len(self.segments[0].weight_K))

    @property
    def requested_units_K(self) -> np.ndarray:
        """Return the units that the weights of each segment request, float64 [K]."""
        borders = [*(segment.first for segment in self.segments), len(self.domain_n)]
        units = [int(self.cost_n[a:b].sum(dtype=np.int64)) for a, b in pairwise(borders)]
        return sum(segment.weight_K / WEIGHT_SCALE * n for segment, n in zip(self.segments, units, strict=True))


def sum_by_domain(domain_n: np.ndarray, values_n: np.ndarray, num_domains: int) -> np.ndarray:
    """Return the sum of integers of each domain, int64 [K]; exact below 2^53."""
    return np.bincount(domain_n, weights=values_n, minlength=num_domains).astype(np.int64)


def draw_batch(
    state: SamplerState, weights_K: np.ndarray, *, orders: Sequence[DomainOrder], settings: PlanSettings
) -> Draws:
    """Draw until the next example would exceed the tokens of a batch, or the data ends.

    Raises:
        ValueError: If the weights are no distribution, an empty domain has weight, or an example is too long.
        DataEndsError: If there is nothing left for even one draw.
    """
    quantise_weights(weights_K)  # checks the weights before supply changes them
    check_supply(weights_K, orders=orders)
    limit_K = draw_limits(orders, max_epochs_per_domain=settings.max_epochs_per_domain)
    num_tokens = settings.rows_per_batch * settings.row_tokens
    parts: list[Draws] = []
    is_full = False
    # One segment after the other, until the batch is full or no domain with weight is left.
    while not is_full:
        try:
            available_K = available_weights(weights_K, draws_K=state.draws_K, limit_K=limit_K)
        except DataEndsError:
            if not parts:
                raise
            break
        part, is_full = _draw_segment(
            state, available_K, orders=orders, limit_K=limit_K, num_tokens=num_tokens, settings=settings
        )
        state = part.state_after(state)
        num_tokens -= int(part.length_n.sum(dtype=np.int64))
        parts.append(part)
    exhausted = np.flatnonzero((weights_K > 0) & (available_K == 0))
    return _join(parts, exhausted=tuple(exhausted.tolist()), is_last=not is_full)


def _draw_segment(
    state: SamplerState,
    weights_K: np.ndarray,
    *,
    orders: Sequence[DomainOrder],
    limit_K: np.ndarray,
    num_tokens: int,
    settings: PlanSettings,
) -> tuple[Draws, bool]:
    """Draw under fixed weights until the batch is full (True) or a domain is exhausted (False)."""
    weight_K = quantise_weights(weights_K)
    deficit_K = settle_debts(state.deficit_K, weight_K)
    count_K = expected_draws(weights_K, orders=orders, unit=settings.weight_unit, num_tokens=num_tokens)
    while True:
        candidates, epoch_F, index_F = open_windows(
            orders, first_draw_K=state.draws_K, count_K=count_K, limit_K=limit_K, settings=settings
        )
        domain_n, reason, short = draw(candidates, weight_K=weight_K, deficit_K=deficit_K, max_tokens=num_tokens)
        if reason != NEEDS_WINDOW:
            segment = Segment(first=0, weight_K=weight_K, deficit_K=deficit_K)
            draws = _collect(domain_n, candidates, epoch_F=epoch_F, index_F=index_F, segment=segment)
            return draws, reason == FINISHED
        count_K[short] *= 2


def _collect(
    domain_n: np.ndarray, candidates: Candidates, *, epoch_F: np.ndarray, index_F: np.ndarray, segment: Segment
) -> Draws:
    """Return the draws of a sequence of domains: the j-th draw of a domain is the j-th candidate of its window."""
    starts_K = candidates.start_K
    order = stable_order(domain_n, len(starts_K) - 1)
    count_K = np.bincount(domain_n, minlength=len(starts_K) - 1)
    first_K = np.cumsum(count_K) - count_K
    drawn = domain_n[order]
    candidate_n = np.empty(len(domain_n), dtype=np.int64)
    candidate_n[order] = np.arange(len(domain_n)) - first_K[drawn] + starts_K[drawn]
    return Draws(
        domain_n=domain_n,
        epoch_n=epoch_F[candidate_n],
        index_n=index_F[candidate_n],
        length_n=candidates.length_F[candidate_n],
        cost_n=candidates.cost_F[candidate_n],
        segments=(segment,),
        is_last=False,
        exhausted=(),
    )


def _join(parts: Sequence[Draws], *, exhausted: tuple[int, ...], is_last: bool) -> Draws:
    firsts = np.cumsum([0, *(len(part.domain_n) for part in parts)]).tolist()
    segments = tuple(replace(part.segments[0], first=first) for part, first in zip(parts, firsts, strict=False))
    return Draws(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS},
        segments=segments,
        is_last=is_last,
        exhausted=exhausted,
    )
