"""Check, project and start the weights of a mixture.

The one idea: weights are a float64 vector on the simplex. What a user wrote is checked and never repaired silently;
what the arithmetic made is projected, keeping the ratios of all domains that no bound touches.

Shape legend: **K** domains.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from versatune_ds.config import MixtureConfig
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.files import read_domain_values

SUM_TOLERANCE = 1e-6
"""How far from 1 the sum of weights that a user wrote may be, per domain; rounding to six digits stays within it."""

_ROUNDING = 1e-12
"""Sums this near to 1 are left alone, so that weights which pass through a file or a check twice stay the same."""

_SMALLEST_FREE_WEIGHT = 1e-12
"""Stands in for a weight of 0 in a projection, where 0 could take no share of what the others must give up."""


def as_weights(values: Sequence[float] | np.ndarray, what: str) -> np.ndarray:
    """Return values as weights, checked to be a distribution.

    Args:
        values: One number a domain, shape [K].
        what: Config key or file they came from; it opens every message.

    Returns:
        float64 array [K], summing to 1 (what a user rounded away is divided out).

    Raises:
        ValueError: If a value is negative or not finite, or the sum is not 1 within 1e-6 a domain.
    """
    weights_K = np.array(values, dtype=np.float64)
    if weights_K.ndim != 1 or weights_K.size == 0:
        raise ValueError(f"{what}: expected one weight a domain, got shape {weights_K.shape}")
    if not np.all(np.isfinite(weights_K)) or np.any(weights_K < 0):
        raise ValueError(f"{what}: no distribution: weights must be finite and not negative, got {weights_K.tolist()}")
    total = float(weights_K.sum())
    if abs(total - 1.0) > SUM_TOLERANCE * weights_K.size:
        raise ValueError(f"{what}: no distribution: the weights sum to {total:.6g}, expected 1; divide each by the sum")
    return weights_K if abs(total - 1.0) < _ROUNDING else weights_K / total


def normalise(values_K: np.ndarray) -> np.ndarray:
    """Return non-negative values [K] divided by their sum.

    Raises:
        ValueError: If the sum is not positive and finite.
    """
    total = float(np.sum(values_K))
    if not np.isfinite(total) or total <= 0:
        raise ValueError(f"cannot normalise values with sum {total}: {np.asarray(values_K).tolist()}")
    return np.asarray(values_K, dtype=np.float64) / total


def effective_num_domains(weights_K: np.ndarray) -> float:
    """Return exp(entropy): K for uniform weights, 1 when one domain has everything.

    Source: METHOD.md section 8 (the perplexity of the mixture; Hill number of order 1).
    """
    positive = weights_K[weights_K > 0]
    return float(np.exp(-np.sum(positive * np.log(positive))))


def kl_divergence(weights_K: np.ndarray, base_K: np.ndarray) -> float:
    """Return KL(weights || base) in nats; infinite where a domain has weight but no base weight."""
    used = weights_K > 0
    if np.any(base_K[used] <= 0):
        return float("inf")
    return float(np.sum(weights_K[used] * np.log(weights_K[used] / base_K[used])))


def project_to_bounds(weights_K: np.ndarray, *, lower_K: np.ndarray, upper_K: np.ndarray) -> np.ndarray:
    """Return the weights within bounds that are nearest in KL divergence.

    The solution is clip(c * weights, lower, upper) with the one c that makes the sum 1, so domains that touch no bound
    keep their ratios. Each round fixes domains that certainly end at a bound: when the clipped sum is above 1, c must
    fall, and whoever is below its lower bound now stays there.

    Example: (.70, .28, .02) with a floor of .10 -> (.70, .28) * .90 / .98 = (.643, .257) and .10.

    Args:
        weights_K: Weights, shape [K], summing to 1.
        lower_K: Smallest weights, with sum <= 1.
        upper_K: Largest weights, with sum >= 1 and nowhere below `lower_K`.

    Raises:
        ValueError: If no weights satisfy the bounds.
    """
    if lower_K.sum() > 1 + 1e-9 or upper_K.sum() < 1 - 1e-9 or np.any(lower_K > upper_K):
        raise ValueError(f"no weights lie between {lower_K.tolist()} and {upper_K.tolist()} and sum to 1")
    if np.all((weights_K >= lower_K) & (weights_K <= upper_K)):
        return weights_K.copy()
    relative_K = np.maximum(weights_K, _SMALLEST_FREE_WEIGHT)
    fixed_K = np.zeros_like(relative_K)
    is_free_K = np.ones(relative_K.shape, dtype=bool)
    for _ in range(len(relative_K)):  # every round but the last fixes at least one domain
        scaled_K = relative_K * ((1.0 - fixed_K.sum()) / relative_K[is_free_K].sum())
        is_low_K, is_high_K = is_free_K & (scaled_K < lower_K), is_free_K & (scaled_K > upper_K)
        if not np.any(is_low_K | is_high_K):
            return np.where(is_free_K, scaled_K, fixed_K)
        is_sum_above = (lower_K - scaled_K)[is_low_K].sum() >= (scaled_K - upper_K)[is_high_K].sum()
        is_fixed_K, bound_K = (is_low_K, lower_K) if is_sum_above else (is_high_K, upper_K)
        fixed_K = np.where(is_fixed_K, bound_K, fixed_K)
        is_free_K &= ~is_fixed_K
        if not np.any(is_free_K):
            break
    return normalise(fixed_K)


def with_floor(weights_K: np.ndarray, floor: float) -> np.ndarray:
    """Return the nearest weights with none below `floor`; the others give in proportion to what they have."""
    num_domains = len(weights_K)
    return project_to_bounds(weights_K, lower_K=np.full(num_domains, floor), upper_K=np.ones(num_domains))


def starting_weights(
    settings: MixtureConfig, *, domain_set: DomainSet, sizes_K: Sequence[float] | np.ndarray | None
) -> np.ndarray:
    """Return the weights at step 0: the prior, or a baseline's fixed mixture.

    Args:
        settings: The recipe's mixture section.
        domain_set: Domains of the run.
        sizes_K: Size of each domain's training data in `mixture.weight_unit`; may be None where no rule asks for it.

    Returns:
        float64 weights [K] on the simplex.

    Raises:
        ValueError: If the prior is no distribution over the domains, a file is missing, or the target is unknown.
    """
    num_domains = len(domain_set)
    if settings.policy == "uniform":
        return np.full(num_domains, 1.0 / num_domains)
    if settings.policy == "proportional":
        return _proportional_weights(sizes_K, domain_set=domain_set)
    if settings.policy == "inverse":
        return inverse_weights(prior_weights(settings, domain_set=domain_set, sizes_K=sizes_K))
    if settings.policy == "target_only":
        return target_weights(target_id_of(settings, domain_set), share=1.0, num_domains=num_domains)
    if settings.policy == "target_uniform":
        return target_weights(target_id_of(settings, domain_set), share=settings.target_share, num_domains=num_domains)
    if settings.policy == "schedule":
        stage_K = domain_set.from_dict(settings.schedule[0].weights, what="mixture.schedule.0.weights")
        return as_weights(stage_K, "mixture.schedule.0.weights")
    prior_K = prior_weights(settings, domain_set=domain_set, sizes_K=sizes_K)
    share = settings.prior_uniform_share or 0.0
    start_K = prior_K if share == 0.0 else (1.0 - share) * prior_K + share / num_domains
    if settings.policy == "steer" and settings.target is not None:
        return with_share(start_K, target_id_of(settings, domain_set), share=settings.target_share)
    return start_K


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
        return np.full(len(domain_set), 1.0 / len(domain_set))
    if prior == "proportional":
        return _proportional_weights(sizes_K, domain_set=domain_set)
    return as_weights(domain_set.from_dict(prior, what="mixture.prior"), "mixture.prior")


def _check_unit(found: object, expected: str, *, path: Path) -> None:
    """Check that a prior file's weights are shares of what the run's weights are; one written by hand may not say.

    Shares of tokens stand for those of loss tokens, which nobody can see in what a model writes.
    """
    if found in (None, expected) or (found, expected) == ("tokens", "loss_tokens"):
        return
    raise ValueError(
        f"mixture.prior: {path}: its weights are shares of {found}, expected {expected} (mixture.weight_unit); run "
        "`versatune detect` again with this recipe, which keeps the sequences, or change mixture.weight_unit"
    )


def inverse_weights(prior_K: np.ndarray) -> np.ndarray:
    """Return the paper's `inverse` baseline: 1 - prior, renormalised.

    Source: VersaTune (arXiv 2411.11266), baselines; METHOD.md section 5.
    """
    return normalise(1.0 - prior_K) if len(prior_K) > 1 else np.ones(1)


def target_weights(target_id: int, *, share: float, num_domains: int) -> np.ndarray:
    """Return a fixed share for one domain and equal shares of the rest for the others.

    Source: VersaTune (arXiv 2411.11266), baselines `target_only` (share 1) and `target_uniform`; METHOD.md section 5.
    """
    weights_K = np.full(num_domains, (1.0 - share) / max(num_domains - 1, 1))
    weights_K[target_id] = share if num_domains > 1 else 1.0
    return weights_K


def with_share(weights_K: np.ndarray, target_id: int, *, share: float) -> np.ndarray:
    """Return weights with a given share for one domain; the others keep their ratios.

    Example: (.2, .3, .5) with .6 for the first -> (.6, .15, .25).
    """
    others_K = weights_K.copy()
    others_K[target_id] = 0.0
    if others_K.sum() <= 0:
        return target_weights(target_id, share=share, num_domains=len(weights_K))
    after_K = (1.0 - share) * normalise(others_K)
    after_K[target_id] = share
    return after_K


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
