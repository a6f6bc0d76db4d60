"""Compute the weights of step 0 from the policy, the prior, the data's sizes and the target.

Shape legend: **K** domains.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from versatune_ds.config import MixtureConfig
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.files import read_domain_values
from versatune_ds.mixture.policies import Start
from versatune_ds.mixture.policies.simplex import equal_weights, normalise
from versatune_ds.mixture.weights import as_weights


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
        uniform_share=rule.uniform_share if settings.prior_uniform_share is None else settings.prior_uniform_share,
        stages=stages_of(settings, domain_set) if rule.needs_stages else (),
    )
    return as_weights(rule.start(start), f"mixture.policy: {settings.policy}: starting weights")


def prior_weights(
    settings: MixtureConfig, *, domain_set: DomainSet, sizes_K: Sequence[float] | np.ndarray | None
) -> np.ndarray:
    """Return `mixture.prior` as weights [K]: uniform, proportional, a mapping, or a prior.json.

    Raises:
        ValueError: If it is no distribution over the domains, or a file's weights are shares of another unit.
    """
    prior = settings.prior
    if isinstance(prior, Path):
        values_K, origin = read_domain_values(prior, key="weights", what="mixture.prior", domain_set=domain_set)
        _check_unit(origin.get("weight_unit"), settings.weight_unit, path=prior)
        return as_weights(values_K, f"mixture.prior: {prior}: weights")
    if prior == "uniform":
        return equal_weights(len(domain_set))
    if prior == "proportional":
        return _proportional_weights(sizes_K, domain_set=domain_set)
    return as_weights(domain_set.from_dict(prior, what="mixture.prior"), "mixture.prior")


def _check_unit(found: object, expected: str, *, path: Path) -> None:
    """Check that a prior file's weights are in the run's unit; one written by hand may have none.

    Shares of tokens count as shares of loss tokens too: `detect` cannot see loss tokens in what a model writes.
    """
    if found in (None, expected) or (found, expected) == ("tokens", "loss_tokens"):
        return
    raise ValueError(
        f"mixture.prior: {path}: its weights are shares of {found}, expected {expected} (mixture.weight_unit); run "
        "`versatune detect` again with this recipe, which keeps the sequences, or change mixture.weight_unit"
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
