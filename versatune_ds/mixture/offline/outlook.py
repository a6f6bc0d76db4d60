"""Warnings about a run before it starts: data used up, collapse, a controller that does nothing.

They are computed from simulated decisions and from the starting weights.

Shape legend: **K** domains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from versatune_ds.config import MixtureConfig
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.decision import Decision
from versatune_ds.mixture.policies import Policy
from versatune_ds.mixture.schedule import Schedule
from versatune_ds.mixture.settings import safeguard_settings
from versatune_ds.mixture.weights import effective_num_domains

STILL_WEIGHTS = 0.01
"""A policy that moves no weight by more than this over a run is a constant (docs/method.md section 11)."""

MANY_EPOCHS = 4.0
"""Passes after which repeated data teaches visibly less than new data. Source: Muennighoff et al. 2023
(arXiv 2305.16264), for pretraining; fine-tuning on few rows shows it earlier, as held-out losses that rise."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Supply:
    """How much data there is and how fast it is drawn, in one unit."""

    sizes_K: np.ndarray
    """Size of each domain."""
    units_per_step: float
    """Drawn by one optimizer step over all domains."""
    max_epochs: float | None = None
    """Passes a domain may make; None leaves it open, and one pass counts as its end."""


def epochs_by_domain(schedule: Schedule, *, supply: Supply, num_steps: int) -> np.ndarray:
    """Return the passes over each domain's data after every step, [num_steps, K]."""
    weights = np.stack([schedule.weights_at(step) for step in range(1, num_steps + 1)])
    return np.cumsum(weights, axis=0) * supply.units_per_step / supply.sizes_K


def collapse_warnings(decisions: Sequence[Decision], *, policy: Policy, domain_set: DomainSet) -> list[str]:
    """Return a warning if the effective number of domains fell below half of the start's, with the first such step."""
    start = effective_num_domains(_start_K(decisions, domain_set))
    for decision in decisions:
        effective = effective_num_domains(decision.weights_K(domain_set))
        if effective < 0.5 * start:
            warning = (
                f"collapse: the effective number of domains fell from {start:.2f} to {effective:.2f} by step "
                f"{decision.decided_at_step}; {policy.when_collapsing} or raise mixture.safeguards.prior_pull"
            )
            return [warning]
    return []


def still_warnings(decisions: Sequence[Decision], *, policy: Policy, domain_set: DomainSet) -> list[str]:
    """Return a warning if no weight ever moved visibly."""
    start_K = _start_K(decisions, domain_set)
    moved = max(float(np.max(np.abs(decision.weights_K(domain_set) - start_K))) for decision in decisions)
    if moved > STILL_WEIGHTS or len(decisions) < 2:
        return []
    warning = (
        f"no weight moved by more than {STILL_WEIGHTS}: {policy.when_still}; "
        "honest references are what moves weights: held-out losses of the base model fine-tuned on each domain alone, "
        "which `versatune reference RECIPE` measures"
    )
    return [warning]


def _start_K(decisions: Sequence[Decision], domain_set: DomainSet) -> np.ndarray:
    """Return the weights [K] of step 0; the first decision may have moved them."""
    return domain_set.from_dict(decisions[0].weights_before, what="weights of step 0")


def start_warnings(
    settings: MixtureConfig, *, named_K: np.ndarray, start_K: np.ndarray, domain_set: DomainSet
) -> list[str]:
    """Return warnings about domains that start at weight 0, and about starting weights that the floor raised.

    Args:
        settings: The recipe's mixture section.
        named_K: Weights at step 0 as the recipe gives them, [K].
        start_K: Weights with which the run starts, [K].
        domain_set: The domains.
    """
    key = "mixture.schedule" if settings.rule.needs_stages else "mixture.prior"
    warnings = []
    below = np.flatnonzero((named_K < start_K * 0.999) & (start_K == np.min(start_K)))
    if below.size:
        names = ", ".join(f"{domain_set.names[i]} (from {named_K[i]:.3g})" for i in below)
        warnings.append(
            f"{key}: the floor of {start_K[below[0]]:.4g} raises the starting weight of {names}; give "
            "more weight there, or lower mixture.safeguards.floor"
        )
    zeros = [
        name for name, weight in domain_set.to_dict(start_K).items() if weight == 0 and _ever_at_zero(settings, name)
    ]
    if zeros:
        if settings.safeguards.floor == 0:
            because = "mixture.safeguards.floor is 0"
        elif settings.paper:
            because = "mixture.paper switches the floor off"
        else:
            because = f"policy {settings.policy!r} has no floor"
        warnings.append(
            f"{key}: {', '.join(zeros)} begins at weight 0 and may never be trained on ({because}); "
            "give it weight, or leave the domain out"
        )
    return warnings


def bounds_line(settings: MixtureConfig, *, start_K: np.ndarray, domain_set: DomainSet) -> str | None:
    """Return which weights of step 0 are at a bound of the safeguards already, or above the cap; None for none.

    Args:
        settings: The recipe's mixture section.
        start_K: Weights with which the run starts, [K].
        domain_set: The domains.
    """
    bounds = safeguard_settings(settings, start_weights_K=start_K)
    is_low_K = (start_K <= bounds.floor * (1 + 1e-9)) & (bounds.floor > 0)
    is_high_K = (start_K >= bounds.cap * (1 - 1e-9)) & (bounds.cap < 1)
    if settings.rule.has_given_target_share and settings.target is not None:
        is_high_K[domain_set.id_of(settings.target)] = False  # its share is set, not decided
    parts = []
    if np.any(is_low_K):
        names = ", ".join(domain_set.names[i] for i in np.flatnonzero(is_low_K))
        parts.append(f"{names} at the floor of {bounds.floor:.4g}, below which no weight falls")
    if np.any(is_high_K):
        names = ", ".join(f"{domain_set.names[i]} ({start_K[i]:.4g})" for i in np.flatnonzero(is_high_K))
        parts.append(f"{names} at or above the cap of {bounds.cap:.4g}, to which the first update lowers it")
    return f"step 0 starts with {'; and '.join(parts)}" if parts else None


def _ever_at_zero(settings: MixtureConfig, name: str) -> bool:
    """Return whether a weight of 0 deserves a warning: not where the policy intends it, or a later stage raises it."""
    if settings.rule.may_start_at_zero:
        return False
    return not settings.rule.needs_stages or not any(stage.weights.get(name) for stage in settings.schedule)


def exhaustion_warnings(
    epochs: np.ndarray, *, supply: Supply, domain_set: DomainSet, tolerated_epochs: float = 1.0
) -> list[str]:
    """Return a warning for each domain that runs out of data, with the step.

    Args:
        epochs: Passes over each domain's data after every step, [steps, K].
        supply: How much data there is.
        domain_set: The domains.
        tolerated_epochs: Passes that need no warning where `supply.max_epochs` sets no limit.
    """
    limit = tolerated_epochs if supply.max_epochs is None else supply.max_epochs
    beyond = limit * (1.0 + 1e-9)  # a domain that ends exactly at its last row is not out of data
    if supply.max_epochs is not None:
        what = f"exhausts its {limit:g} epochs"
    else:
        what = "repeats its data" if limit == 1.0 else f"goes beyond {limit:g} epochs"
    warnings = []
    for name, passes in zip(domain_set, epochs.T, strict=True):
        if passes[-1] > beyond:
            warnings.append(f"{name} {what} from step {int(np.argmax(passes > beyond)) + 1} ({passes[-1]:.2f} epochs)")
    return warnings
