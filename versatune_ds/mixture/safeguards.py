"""Safeguards: bounds, limits and alarms on the weights that a policy proposes.

Each safeguard is a pure function that returns the weights and what acted; `apply_safeguards` calls them in order. Those
that losses set are in `loss_limits.py`, the bounds on single weights in `weight_bounds.py`. The KL limit shortens the
step inside those bounds (both sets are convex, so the bounds are still met).

Source: docs/method.md section 8.

Shape legend: **K** domains.
"""

from __future__ import annotations

import numpy as np

from versatune_ds.domains import DomainSet
from versatune_ds.mixture.inputs import Inputs
from versatune_ds.mixture.loss_limits import forgetting_budget, plan_bounds
from versatune_ds.mixture.overfitting import OverfitWatch, over_fitting_warning, reduce_over_fitting
from versatune_ds.mixture.policies import Signals
from versatune_ds.mixture.policies.acted import ALARM, Acted, Guarded
from versatune_ds.mixture.settings import SafeguardSettings
from versatune_ds.mixture.weight_bounds import feasible_bounds, within_bounds
from versatune_ds.mixture.weights import effective_num_domains, kl_divergence, project_to_bounds

_BISECTIONS = 40
"""Halvings of the step in the KL limit: precise to 1e-12 of the step."""

_SMALLEST_BASE_WEIGHT = 1e-12


def prior_pull(weights_K: np.ndarray, *, start_weights_K: np.ndarray, pull: float, num_intervals: float) -> Guarded:
    """Blend in the starting mixture: (1 - a) P + a * start, a = 1 - (1 - pull)^n."""
    if pull == 0.0:
        return weights_K, ()
    share = 1.0 - (1.0 - pull) ** num_intervals
    acted = Acted("prior pull", (), f"prior pull {share:.3g}")
    return (1.0 - share) * weights_K + share * start_weights_K, (acted,)


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
