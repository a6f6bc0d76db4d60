"""Resolve a recipe's mixture section into numbers: the weights of step 0, and what policies and safeguards use.

Step 0 depends on the policy, the prior, the data's sizes and the target.

Only the recipe's section and this file read `paper`. Everything that `mixture.paper: true` switches off is switched
off here: interval exponent, floor, cap, KL limit, pull, budget, alarm and the confidence bound.

Shape legend: **K** domains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from versatune_ds.config import MixtureConfig
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.files import read_domain_values
from versatune_ds.mixture.planning.plan_file import Plan, is_plan, read_plan
from versatune_ds.mixture.policies import Policy, PolicySettings, Start
from versatune_ds.mixture.policies.simplex import equal_weights, normalise
from versatune_ds.mixture.weights import as_weights, effective_num_domains, project_to_bounds

_FLOOR_SHARE = 0.1
"""Default floor as a share of the uniform weight 1/K."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SafeguardSettings:
    """Numbers of the safeguards; by default all of them are off."""

    floor: float = 0.0
    cap: float = 1.0
    max_kl: float | None = None
    """Largest KL divergence of one update in nats, None for no limit."""
    prior_pull: float = 0.0
    """Share of the starting mixture blended in per interval."""
    min_effective_domains: float = 0.0
    """Effective number of domains below which an alarm is raised."""
    forgetting_budget: float | None = None
    """Relative rise over best or start that pulls weight back, None for no budget."""
    z: float = 0.0
    """Standard errors subtracted from a rise before it counts as forgetting."""
    overfit: Literal["off", "warn", "reduce"] = "off"
    """What happens to a domain whose held-out loss rises while its training loss falls."""


def starting_weights(
    settings: MixtureConfig, *, domain_set: DomainSet, sizes_K: Sequence[float] | np.ndarray | None
) -> np.ndarray:
    """Return the weights at step 0: the prior, or a baseline's fixed mixture.

    Args:
        settings: The recipe's mixture section.
        domain_set: Domains of the run.
        sizes_K: Size of each domain's training data in `mixture.weight_unit`; None where the policy does not need it.

    Returns:
        float64 weights [K] on the simplex.

    Raises:
        ValueError: If the prior is no distribution over the domains, a file is missing, or the target is unknown.
    """
    rule = settings.rule
    start = Start(
        num_domains=len(domain_set),
        prior=lambda: prior_weights(settings, domain_set=domain_set, sizes_K=sizes_K),
        proportional=lambda: _proportional_weights(sizes_K, domain_set=domain_set),
        target_id=target_id_of(settings, domain_set) if settings.has_target else None,
        target_share=settings.target_share,
        uniform_share=uniform_share(settings),
        temperature=settings.prior_temperature,
        stages=stages_of(settings, domain_set) if rule.needs_stages else (),
    )
    return as_weights(rule.start(start), f"mixture.policy: {settings.policy}: starting weights")


def uniform_share(settings: MixtureConfig) -> float:
    """Return `mixture.prior_uniform_share`; a recipe with a user's own policy leaves its default open."""
    share = settings.prior_uniform_share
    return settings.default_uniform_share(settings.rule) if share is None else share


def plan_of_prior(settings: MixtureConfig) -> Plan | None:
    """Return the plan that `mixture.prior` names; None where it names another file, or none.

    Raises:
        ValueError: If it is a plan with an entry that is not as expected.
    """
    return read_plan(settings.prior, what="mixture.prior") if isinstance(settings.prior, Path) else None


def prior_weights(
    settings: MixtureConfig, *, domain_set: DomainSet, sizes_K: Sequence[float] | np.ndarray | None
) -> np.ndarray:
    """Return `mixture.prior` as weights [K]: uniform, proportional, a mapping, a prior.json, or a plan.json.

    Raises:
        ValueError: If it is no distribution over the domains, or a file's weights are shares of another unit.
    """
    prior = settings.prior
    if isinstance(prior, Path):
        values_K, origin = read_domain_values(prior, key="weights", what="mixture.prior", domain_set=domain_set)
        writer = "plan" if is_plan({"weights": values_K, **origin}) else "detect"
        _check_unit(origin.get("weight_unit"), settings.weight_unit, path=prior, writer=writer)
        return as_weights(values_K, f"mixture.prior: {prior}: weights")
    if prior == "uniform":
        return equal_weights(len(domain_set))
    if prior == "proportional":
        return _proportional_weights(sizes_K, domain_set=domain_set)
    return as_weights(domain_set.from_dict(prior, what="mixture.prior"), "mixture.prior")


def _check_unit(found: object, expected: str, *, path: Path, writer: str) -> None:
    """Check that a prior file's weights are in the run's unit; one written by hand may have none.

    Shares of tokens count as shares of loss tokens too: `detect` cannot see loss tokens in what a model writes.
    """
    if found in (None, expected) or (found, expected) == ("tokens", "loss_tokens"):
        return
    again = "run `versatune detect` again with this recipe, which keeps the sequences, or change mixture.weight_unit"
    way_out = again if writer == "detect" else f"set mixture.weight_unit={found}"
    raise ValueError(
        f"mixture.prior: {path}: its weights are shares of {found}, expected {expected} (mixture.weight_unit); "
        f"{way_out}"
    )


def target_id_of(settings: MixtureConfig, domain_set: DomainSet) -> int:
    """Return the id of `mixture.target`; raise ValueError naming the key where no domain has that name."""
    if settings.target is None:
        raise ValueError(f"mixture.target: policy {settings.policy!r} needs it; name the domain to strengthen")
    try:
        return domain_set.id_of(settings.target)
    except ValueError as error:
        raise ValueError(f"mixture.target: {error}") from None


def _proportional_weights(sizes_K: Sequence[float] | np.ndarray | None, *, domain_set: DomainSet) -> np.ndarray:
    """Return the domains' shares of the data."""
    if sizes_K is None:
        raise ValueError("mixture.prior: 'proportional' needs the sizes of the data, which are not known here")
    sizes = domain_set.from_dict(domain_set.to_dict(sizes_K), what="sizes of the domains")
    if np.any(sizes <= 0):
        empty = [name for name, size in zip(domain_set, sizes, strict=True) if size <= 0]
        raise ValueError(f"data: no training data in {', '.join(empty)}; give rows or leave the domain out")
    return normalise(sizes)


def stages_of(settings: MixtureConfig, domain_set: DomainSet) -> tuple[tuple[int, np.ndarray], ...]:
    """Return the stages of `mixture.schedule` as (step, weights [K]), each checked to be a distribution."""
    stages = []
    for index, stage in enumerate(settings.schedule):
        key = f"mixture.schedule.{index}.weights"
        stages.append((stage.step, as_weights(domain_set.from_dict(stage.weights, what=key), key)))
    return tuple(stages)


def guarded_start(settings: MixtureConfig, start_weights_K: np.ndarray, *, domain_set: DomainSet) -> np.ndarray:
    """Return starting weights [K] raised to the safeguards' floor; unchanged where none is below it.

    A weight of 0 never grows under a rule that multiplies, so the floor applies from the first step on. Fixed
    mixtures, schedules and the paper's rule keep the weights of the recipe; a target with a given share keeps it.
    """
    num_domains = len(domain_set)
    floor = safeguard_settings(settings, start_weights_K=start_weights_K).floor
    if np.all(start_weights_K >= floor):
        return start_weights_K
    lower_K, upper_K = np.full(num_domains, floor), np.ones(num_domains)
    if settings.rule.has_given_target_share and settings.target is not None:
        target_id = target_id_of(settings, domain_set)
        share = min(max(float(start_weights_K[target_id]), floor), 1.0 - floor * (num_domains - 1))
        lower_K[target_id] = upper_K[target_id] = share
    return project_to_bounds(start_weights_K, lower_K=lower_K, upper_K=upper_K)


def policy_settings(
    settings: MixtureConfig, *, domain_set: DomainSet, start_weights_K: np.ndarray, rule: Policy | None = None
) -> PolicySettings:
    """Return the numbers that a policy may read, checked for that policy; by default for `mixture.policy`.

    Raises:
        ValueError: If the target or a stage names an unknown domain, or a targeted policy has a single domain.
    """
    rule = settings.rule if rule is None else rule
    settings.check_for_rule(rule)
    is_targeted = rule.has_target(settings.target)
    if is_targeted and len(domain_set) < 2:
        raise ValueError(
            f"mixture.policy: {settings.policy!r} needs at least two domains where it has a target, this run has one"
        )
    return PolicySettings(
        policy=settings.policy,
        sigma=settings.sigma,
        delta=settings.delta,
        epsilon=settings.epsilon,
        otherwise=settings.expansion.otherwise,
        interval_steps=None if settings.paper else settings.sigma_interval_steps,
        target_id=target_id_of(settings, domain_set) if is_targeted else None,
        cap=1.0 if settings.paper else settings.safeguards.cap,
        step_size=settings.exponentiated.step_size,
        smoothing=settings.exponentiated.smoothing,
        rate=settings.steer.rate,
        anchor=settings.steer.anchor,
        potential=settings.steer.potential,
        start_weights_K=start_weights_K,
        stages=stages_of(settings, domain_set),
    )


def safeguard_settings(
    settings: MixtureConfig, *, start_weights_K: np.ndarray, rule: Policy | None = None
) -> SafeguardSettings:
    """Return the safeguards' numbers; all off in paper mode and for the fixed mixtures.

    Raises:
        ValueError: If no weights lie between floor and cap.
    """
    chosen = settings.safeguards
    if settings.paper:
        return SafeguardSettings()
    if (settings.rule if rule is None else rule).is_fixed:
        return SafeguardSettings(z=chosen.z, overfit="off" if chosen.overfit == "off" else "warn")
    floor, cap = floor_and_cap(settings, num_domains=len(start_weights_K))
    return SafeguardSettings(
        floor=floor,
        cap=cap,
        max_kl=chosen.max_kl,
        prior_pull=chosen.prior_pull,
        min_effective_domains=chosen.effective_domains_alarm * effective_num_domains(start_weights_K),
        forgetting_budget=chosen.forgetting_budget,
        z=chosen.z,
        overfit=chosen.overfit,
    )


def floor_and_cap(settings: MixtureConfig, *, num_domains: int) -> tuple[float, float]:
    """Return the smallest and the largest weight of a domain.

    Raises:
        ValueError: If no weights lie between them.
    """
    chosen = settings.safeguards
    if num_domains == 1:
        return 0.0, 1.0
    floor = _FLOOR_SHARE / num_domains if chosen.floor is None else chosen.floor
    if chosen.cap * num_domains < 1:
        raise ValueError(f"mixture.safeguards.cap: {chosen.cap} for each of {num_domains} domains sums to less than 1")
    if floor * num_domains > 1 or floor > chosen.cap:
        raise ValueError(
            f"mixture.safeguards.floor: {floor} for each of {num_domains} domains leaves no room below the cap "
            f"{chosen.cap}; expected at most {min(chosen.cap, 1 / num_domains):.4g}"
        )
    return floor, chosen.cap
