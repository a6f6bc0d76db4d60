"""Limits that losses set: weight goes back to domains that forget, or that would end above the bound of a plan.

Source: docs/method.md sections 8, 11 and 13.

Shape legend: **K** domains.
"""

from __future__ import annotations

import numpy as np

from versatune_ds.domains import DomainSet
from versatune_ds.mixture.policies import Signals
from versatune_ds.mixture.policies.acted import Acted, Guarded
from versatune_ds.mixture.policies.simplex import normalise, with_share

_MAX_BUDGET_FACTOR = 2.0
"""Largest factor per interval by which the forgetting budget raises a weight."""

_EXCESS_TO_DOUBLE = 0.02
"""Rise beyond a plan's bound, as a share of the first loss, from which a weight is doubled per interval."""


def rise_beyond_earlier(signals: Signals) -> np.ndarray:
    """Return each domain's relative rise over its best or its first loss, whichever is larger, [K]; 0 if unknown."""
    return np.nan_to_num(np.maximum(signals.forgetting_from_best_K, signals.forgetting_from_start_K))


def forgetting_budget(
    weights_K: np.ndarray,
    *,
    before_K: np.ndarray,
    signals: Signals,
    budget: float | None,
    num_intervals: float,
    domain_set: DomainSet,
) -> Guarded:
    """Pull weight back to domains whose loss rose over their best or first one by more than the budget.

    With v = rise / budget > 1, a domain gets at least the weight it had, times min(v, 2)^n. The rises are lower bounds
    at z standard errors. Source: docs/method.md section 11 ("constraint first").
    """
    if budget is None:
        return weights_K, ()
    rise_K = rise_beyond_earlier(signals)
    is_over_K = rise_K > budget
    if not np.any(is_over_K):
        return weights_K, ()
    factor_K = np.minimum(rise_K / budget, _MAX_BUDGET_FACTOR) ** num_intervals
    raised_K = np.where(is_over_K, np.maximum(weights_K, before_K) * factor_K, weights_K)
    worst_first = sorted(np.flatnonzero(is_over_K), key=lambda domain_id: -rise_K[domain_id])
    rises = ", ".join(f"{domain_set.names[i]} {rise_K[i]:.1%}" for i in worst_first)
    names = tuple(domain_set.names[i] for i in worst_first)
    return normalise(raised_K), (Acted("forgetting budget", names, f"forgetting budget {budget:.1%}: {rises}"),)


def plan_bounds(
    weights_K: np.ndarray,
    *,
    before_K: np.ndarray,
    signals: Signals,
    bounds_K: np.ndarray | None,
    num_intervals: float,
    domain_set: DomainSet,
    target_id: int | None = None,
) -> Guarded:
    """Pull weight back to domains that would end above the bound that the mixture was planned for.

    With x = planned rise - bound > 0, a domain gets at least the weight it had, times min(1 + x / .02, 2)^n. The rises
    are lower bounds at z standard errors. A target keeps its share: the others give. Source: docs/method.md section 13.

    Example: weights (.5, .5), bound 0 on the first, which would end 1 % above: (.75, .5) / 1.25 = (.6, .4).
    """
    if bounds_K is None:
        return weights_K, ()
    excess_K = np.nan_to_num(signals.planned_rise_K - bounds_K, neginf=0.0)
    is_over_K = excess_K > 0
    if not np.any(is_over_K):
        return weights_K, ()
    factor_K = np.minimum(1.0 + excess_K / _EXCESS_TO_DOUBLE, _MAX_BUDGET_FACTOR) ** num_intervals
    raised_K = normalise(np.where(is_over_K, np.maximum(weights_K, before_K) * factor_K, weights_K))
    if target_id is not None and not is_over_K[target_id]:
        raised_K = with_share(raised_K, target_id, share=float(weights_K[target_id]))
    worst_first = sorted(np.flatnonzero(is_over_K), key=lambda domain_id: -excess_K[domain_id])
    rises = ", ".join(
        f"{domain_set.names[i]} {signals.planned_rise_K[i]:+.1%} of {bounds_K[i]:+.1%}" for i in worst_first
    )
    names = tuple(domain_set.names[i] for i in worst_first)
    return raised_K, (Acted("plan bounds", names, f"plan bounds: would end at {rises}"),)


def eased_budget(
    signals: Signals, *, unbounded: Signals, budget: float | None, domain_set: DomainSet
) -> tuple[Acted, ...]:
    """Return a record of the domains whose forgetting budget the confidence bound eased; empty if none.

    The rises of `signals` are lower bounds, those of `unbounded` are as measured.
    """
    if budget is None:
        return ()
    rise_K, measured_K = rise_beyond_earlier(signals), rise_beyond_earlier(unbounded)
    eased = tuple(domain_set.names[i] for i in np.flatnonzero((measured_K > budget) & (rise_K < measured_K)))
    if not eased:
        return ()
    return (Acted("confidence bound", eased, f"confidence bound: less of the budget is used by {', '.join(eased)}"),)


def eased_plan_bounds(
    signals: Signals, *, unbounded: Signals, bounds_K: np.ndarray | None, domain_set: DomainSet
) -> tuple[Acted, ...]:
    """Return a record of the domains that would end above the plan's bound, but within the noise; empty if none."""
    if bounds_K is None:
        return ()
    is_above_K = unbounded.planned_rise_K > bounds_K
    eased = tuple(domain_set.names[i] for i in np.flatnonzero(is_above_K & ~(signals.planned_rise_K > bounds_K)))
    if not eased:
        return ()
    return (
        Acted("confidence bound", eased, f"confidence bound: above the plan's bound within noise: {', '.join(eased)}"),
    )
