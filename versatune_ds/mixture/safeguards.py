"""Safeguards: bounds, limits and alarms on the weights that a policy proposes.

Each safeguard is a pure function that returns the weights and what acted; `apply_safeguards` calls them in order.
Floors, caps, pins, frozen domains and exhausted data are all bounds on single weights, met by one projection. The KL
limit then shortens the step inside them (both sets are convex, so the bounds are still met).

Source: docs/method.md section 8.

Shape legend: **K** domains.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from versatune_ds.domains import DomainSet
from versatune_ds.mixture.inputs import Inputs
from versatune_ds.mixture.overfitting import OverfitWatch, over_fitting_warning, reduce_over_fitting
from versatune_ds.mixture.policies import Signals
from versatune_ds.mixture.policies.acted import ALARM, Acted
from versatune_ds.mixture.policies.simplex import normalise, with_share
from versatune_ds.mixture.settings import SafeguardSettings
from versatune_ds.mixture.weights import effective_num_domains, kl_divergence, project_to_bounds

_MAX_BUDGET_FACTOR = 2.0
"""Largest factor per interval by which the forgetting budget raises a weight."""

_EXCESS_TO_DOUBLE = 0.02
"""Rise beyond a plan's bound, as a share of the first loss, from which a weight is doubled per interval."""

_BISECTIONS = 40
"""Halvings of the step in the KL limit: precise to 1e-12 of the step."""

_MAX_NAMES = 12
"""Domains listed for one bound that acted; the rest are counted."""

_SMALLEST_BASE_WEIGHT = 1e-12

Guarded = tuple[np.ndarray, tuple[Acted, ...]]
"""Weights [K] after a safeguard, and what acted; empty if it changed nothing."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bounds:
    """Smallest and largest weight of each domain, and what set it."""

    lower_K: np.ndarray
    """float64, sums to at most 1."""
    upper_K: np.ndarray
    """float64, sums to at least 1."""
    lower_by: tuple[str, ...]
    """What set each lower bound: "floor", "pin", "freeze"."""
    upper_by: tuple[str, ...]
    """What set each upper bound: "cap", "control cap", "supply cap", "pin", "freeze"."""


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


def prior_pull(weights_K: np.ndarray, *, start_weights_K: np.ndarray, pull: float, num_intervals: float) -> Guarded:
    """Blend in the starting mixture: (1 - a) P + a * start, a = 1 - (1 - pull)^n."""
    if pull == 0.0:
        return weights_K, ()
    share = 1.0 - (1.0 - pull) ** num_intervals
    acted = Acted("prior pull", (), f"prior pull {share:.3g}")
    return (1.0 - share) * weights_K + share * start_weights_K, (acted,)


def bounds_from(settings: SafeguardSettings, *, inputs: Inputs, before_K: np.ndarray, domain_set: DomainSet) -> Bounds:
    """Return the bounds of all domains; pins override frozen domains, both override caps, caps the floor."""
    num_domains = len(domain_set)
    lower_K, upper_K = np.full(num_domains, settings.floor), np.full(num_domains, settings.cap)
    lower_by, upper_by = ["floor"] * num_domains, ["cap"] * num_domains
    for what, caps in (("control cap", inputs.caps), ("supply cap", inputs.supply_caps)):
        for name, cap in caps.items():
            domain_id = domain_set.id_of(name)
            if cap < upper_K[domain_id]:
                upper_K[domain_id], upper_by[domain_id] = cap, what
    lower_K = np.minimum(lower_K, upper_K)
    frozen = {name: float(before_K[domain_set.id_of(name)]) for name in inputs.freeze}
    for what, fixed in (("freeze", frozen), ("pin", inputs.pins)):
        for name, weight in fixed.items():
            domain_id = domain_set.id_of(name)
            lower_K[domain_id] = upper_K[domain_id] = weight
            lower_by[domain_id] = upper_by[domain_id] = what
    return Bounds(lower_K=lower_K, upper_K=upper_K, lower_by=tuple(lower_by), upper_by=tuple(upper_by))


def feasible_bounds(
    settings: SafeguardSettings, *, inputs: Inputs, before_K: np.ndarray, domain_set: DomainSet
) -> tuple[Bounds, tuple[Acted, ...]]:
    """Return bounds that some weights meet: without supply caps if needed, and at last without live control."""
    no_supply = "supply caps given up: too little data is left in all domains together"
    no_control = "control given up: no weights satisfy its pins, caps and frozen domains together"
    attempts: tuple[tuple[Inputs, tuple[Acted, ...]], ...] = (
        (inputs, ()),
        (
            Inputs(pins=inputs.pins, caps=inputs.caps, freeze=inputs.freeze),
            (Acted("supply caps given up", tuple(inputs.supply_caps), no_supply),),
        ),
        (Inputs(), (Acted("control given up", (), no_control),)),
    )
    for allowed, given_up in attempts:
        bounds = bounds_from(settings, inputs=allowed, before_K=before_K, domain_set=domain_set)
        if bounds.lower_K.sum() <= 1.0 + 1e-9 and bounds.upper_K.sum() >= 1.0 - 1e-9:
            return bounds, given_up
    raise AssertionError("safeguard_settings checks that floor and cap alone leave room")


def within_bounds(weights_K: np.ndarray, *, bounds: Bounds, domain_set: DomainSet) -> Guarded:
    """Project the weights onto the bounds; each bound that changed a weight acted, with its domains."""
    projected_K = project_to_bounds(weights_K, lower_K=bounds.lower_K, upper_K=bounds.upper_K)
    names_by: dict[str, list[str]] = {}
    for is_beyond_K, by in (
        (weights_K < bounds.lower_K, bounds.lower_by),
        (weights_K > bounds.upper_K, bounds.upper_by),
    ):
        for domain_id in np.flatnonzero(is_beyond_K):
            names_by.setdefault(by[domain_id], []).append(domain_set.names[domain_id])
    acted = tuple(
        Acted(by, tuple(names), f"{by}: {_listed(names)}", is_same_entry=number > 0)
        for number, (by, names) in enumerate(names_by.items())
    )
    return projected_K, acted


def _listed(names: list[str]) -> str:
    """Return names in one text, the first few of many."""
    more = len(names) - _MAX_NAMES
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:_MAX_NAMES])} and {more} more"


def kl_limit(weights_K: np.ndarray, *, base_K: np.ndarray, max_kl: float | None) -> Guarded:
    """Shorten the straight step from base to weights until KL(weights || base) is at most `max_kl` nats.

    A base weight of 0 counts as 1e-12: its divergence is large but not infinite, so that it can still leave 0.
    """
    base_K = np.maximum(base_K, _SMALLEST_BASE_WEIGHT)
    divergence = kl_divergence(weights_K, base_K)
    if max_kl is None or divergence <= max_kl:
        return weights_K, ()
    shortest, longest = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (shortest + longest) / 2
        is_within = kl_divergence((1 - middle) * base_K + middle * weights_K, base_K) <= max_kl
        shortest, longest = (middle, longest) if is_within else (shortest, middle)
    acted = Acted("KL limit", (), f"KL limit: {divergence:.3g} nats cut to {max_kl:.3g}")
    return (1 - shortest) * base_K + shortest * weights_K, (acted,)


def effective_domains_alarm(weights_K: np.ndarray, *, min_effective_domains: float) -> tuple[Acted, ...]:
    """Return an alarm where the mixture is collapsing; it changes no weight."""
    effective = effective_num_domains(weights_K)
    if effective >= min_effective_domains:
        return ()
    text = f"alarm: effective number of domains {effective:.2f} is below {min_effective_domains:.2f}"
    return (Acted(ALARM, (), text),)


def apply_safeguards(
    weights_K: np.ndarray,
    *,
    before_K: np.ndarray,
    start_weights_K: np.ndarray,
    signals: Signals,
    settings: SafeguardSettings,
    inputs: Inputs,
    num_intervals: float,
    domain_set: DomainSet,
    plan_bounds_K: np.ndarray | None = None,
    target_id: int | None = None,
    overfit: OverfitWatch | None = None,
) -> Guarded:
    """Return the proposed weights [K] within all safeguards, and what acted.

    Order: bounds of the plan, forgetting budget, prior pull, over-fitting, bounds (floor, caps, pins, freeze), KL
    limit, alarm. The KL limit measures from the old weights brought within the bounds, so that it never undoes a bound.
    `overfit` is None where nothing watches for over-fitting.
    """
    weights_K, by_plan = plan_bounds(
        weights_K,
        before_K=before_K,
        signals=signals,
        bounds_K=plan_bounds_K,
        num_intervals=num_intervals,
        domain_set=domain_set,
        target_id=target_id,
    )
    weights_K, by_budget = forgetting_budget(
        weights_K,
        before_K=before_K,
        signals=signals,
        budget=settings.forgetting_budget,
        num_intervals=num_intervals,
        domain_set=domain_set,
    )
    weights_K, by_pull = prior_pull(
        weights_K, start_weights_K=start_weights_K, pull=settings.prior_pull, num_intervals=num_intervals
    )
    weights_K, by_overfit = _over_fitting(
        weights_K,
        before_K=before_K,
        watch=overfit,
        settings=settings,
        num_intervals=num_intervals,
        domain_set=domain_set,
    )
    bounds, given_up = feasible_bounds(settings, inputs=inputs, before_K=before_K, domain_set=domain_set)
    weights_K, by_bounds = within_bounds(weights_K, bounds=bounds, domain_set=domain_set)
    base_K = project_to_bounds(before_K, lower_K=bounds.lower_K, upper_K=bounds.upper_K)
    weights_K, by_kl = kl_limit(weights_K, base_K=base_K, max_kl=settings.max_kl)
    by_alarm = effective_domains_alarm(weights_K, min_effective_domains=settings.min_effective_domains)
    return weights_K, (*by_plan, *by_budget, *by_pull, *by_overfit, *given_up, *by_bounds, *by_kl, *by_alarm)


def _over_fitting(
    weights_K: np.ndarray,
    *,
    before_K: np.ndarray,
    watch: OverfitWatch | None,
    settings: SafeguardSettings,
    num_intervals: float,
    domain_set: DomainSet,
) -> Guarded:
    """Do what the recipe asks for about over-fitting domains: nothing, record them, or lower their weights."""
    if watch is None or settings.overfit == "off":
        return weights_K, ()
    if settings.overfit == "warn":
        return weights_K, over_fitting_warning(watch, domain_set=domain_set)
    return reduce_over_fitting(
        weights_K,
        before_K=before_K,
        watch=watch,
        floor=settings.floor,
        num_intervals=num_intervals,
        domain_set=domain_set,
    )
