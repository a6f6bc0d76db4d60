"""Load what a run's mixture starts from: sizes of the data, weights of step 0, reference losses.

Training, inspect, simulate and replay call this file, so that all of them start from the same weights.

Shape legend: **K** domains.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from versatune_ds.config import RunConfig
from versatune_ds.data.encoding.templates import choose_template, template_digest
from versatune_ds.data.encoding.tokenizer import tokenizer_digest
from versatune_ds.data.manifest import digest_of_texts
from versatune_ds.data.order.sampler import WeightUnit
from versatune_ds.data.order.supply import epochs_at_end
from versatune_ds.data.prepare.domains import PreparedData
from versatune_ds.log import SHARED
from versatune_ds.mixture.controller import Controller
from versatune_ds.mixture.followed_plan import plan_to_follow
from versatune_ds.mixture.offline.outlook import Supply
from versatune_ds.mixture.planning.plan_file import Plan
from versatune_ds.mixture.policies import KEEPS_PRIOR
from versatune_ds.mixture.reference import References, check_provenance, load_references
from versatune_ds.mixture.settings import guarded_start, plan_of_prior, starting_weights, uniform_share
from versatune_ds.text_table import text_table
from versatune_ds.training.prepared_data import RunSetup

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MixtureStart:
    """The mixture a run starts with.

    Attributes:
        named_K: Weights of step 0 as the recipe gives them, float64.
        weights_K: The same, none below the safeguards' floor: those the run starts with.
        references: Reference losses, checked against the run's tokens and loss mask.
        plan: The plan that the weights come from; None where `mixture.prior` is none, or the policy does not read it.
        controller: Built on every rank, so that every rank finds wrong settings; rank 0 uses it.
    """

    named_K: np.ndarray
    weights_K: np.ndarray
    references: References
    controller: Controller
    plan: Plan | None = None


def start_mixture(setup: RunSetup) -> MixtureStart:
    """Return the mixture that a run starts with, and log it as a table.

    Raises:
        ValueError: If the references are missing, or cannot steer this run and `mixture.reference_check` is refuse; or
            as `named_weights` does.
    """
    config, data = setup.config, setup.data
    references = _checked_references(setup)
    named_K, weights_K = named_weights(config, data), recipe_weights(config, data)
    plan = plan_of_start(config)
    controller = Controller(
        domain_set=data.domain_set,
        settings=config.mixture,
        weights_K=weights_K,
        references=references,
        plan=plan_to_follow(config.mixture, plan, domain_set=data.domain_set, num_steps=config.train.steps),
    )
    logger.info("mixture\n%s", mixture_table(config, data, weights_K))
    return MixtureStart(named_K=named_K, weights_K=weights_K, references=references, controller=controller, plan=plan)


def plan_of_start(config: RunConfig) -> Plan | None:
    """Return the plan that a run starts from, and log whether it is blended with uniform: by default it is not."""
    settings = config.mixture
    plan = plan_of_prior(settings) if "prior" in settings.rule.all_reads else None
    if plan is None:
        return None
    share = uniform_share(settings)
    how = _how_a_plan_is_used(share=share, temperature=settings.prior_temperature)
    logger.info(
        "mixture.prior: %s is a plan for %s, %s (mixture.prior_uniform_share: %g)",
        settings.prior, plan.purpose, how, share,
    )  # fmt: skip
    if plan.budget_steps != config.train.steps:
        logger.warning(
            "mixture.prior: %s predicts a run of %d steps, this one has %d (train.steps): plan again with this recipe",
            settings.prior, plan.budget_steps, config.train.steps, extra=SHARED,
        )  # fmt: skip
    _log_what_is_followed(config, plan, share=share)
    return plan


def _how_a_plan_is_used(*, share: float, temperature: float) -> str:
    """Return what the start makes of a plan's weights, in words."""
    if share == 0 and temperature == 1:
        return "taken as it is"
    flattened = f"at temperature {temperature:g}" if temperature != 1 else ""
    blended = f"blended with {share:.0%} uniform" if share else ""
    return ", ".join(part for part in (flattened, blended) if part)


def _log_what_is_followed(config: RunConfig, plan: Plan, *, share: float) -> None:
    """Log what a run takes of a plan besides its weights, or why nothing."""
    settings = config.mixture
    if "steer.follow_plan" not in settings.rule.all_reads:
        return
    if not settings.steer.follow_plan:
        followed = "only its weights are used (mixture.steer.follow_plan=false)"
    elif settings.has_own_signal:
        followed = f"only its weights are used: it predicts held-out losses, and mixture.signal is {settings.signal}"
    elif share > 0:
        followed = f"only its weights are used: blended with uniform ({share:g}) it is another mixture"
    elif settings.prior_temperature != 1:
        temperature = f"{settings.prior_temperature:g} (mixture.prior_temperature)"
        followed = f"only its weights are used: at temperature {temperature} it is another mixture"
    elif plan.track is None:
        followed = "only its weights are used: it has no track (an earlier version); write it again with versatune plan"
    else:
        bounds = ", ".join(f"{name} {bound:+.1%}" for name, bound in plan.bounds.items()) or "none"
        track = "its predicted course is recorded" if plan.track else f"planner {plan.planner} predicts no course"
        followed = f"bounds kept: {bounds}; {track} (mixture.steer.follow_plan)"
    logger.info("mixture.prior: %s: %s", settings.prior, followed)


def _checked_references(setup: RunSetup) -> References:
    """Return the reference losses, checked to be of the run's tokens and loss mask."""
    config, data = setup.config, setup.data
    references = load_references(config.mixture, domain_set=data.domain_set)
    if is_never_measured(config, num_valid_K=[len(shards) for shards in data.valid]):
        logger.warning("mixture.policy: %s", nothing_measured(config), extra=SHARED)
    for warning in check_provenance(
        references,
        domain_set=data.domain_set,
        run_digests=loss_digests(config, setup.tokenizer, data),
        is_refused=config.mixture.reference_check == "refuse",
    ):
        logger.warning("%s", warning, extra=SHARED)
    return references


def loss_digests(config: RunConfig, tokenizer: Any, data: PreparedData) -> dict[str, str]:
    """Return digests of what two losses must share to be comparable: tokenizer, template, loss mask, held-out rows.

    The order of the domains does not count.
    """
    held_out = sorted(f"{shards.name} {shards.digest}" for shards in data.valid)
    return {
        "tokenizer": tokenizer_digest(tokenizer),
        "template": template_digest(choose_template(tokenizer, path=config.data.chat_template)),
        "mask": config.data.loss_on,
        "held-out split": digest_of_texts(held_out),
    }


def is_never_measured(config: RunConfig, *, num_valid_K: Sequence[int]) -> bool:
    """Return whether a policy that moves by held-out losses has no held-out row in any domain."""
    return not config.mixture.rule.is_fixed and config.mixture.signal == "validation" and not any(num_valid_K)


def nothing_measured(config: RunConfig) -> str:
    """Return the warning for such a recipe."""
    return (
        f"{config.mixture.policy} moves the mixture by held-out losses, but no domain has held-out rows: it stays at "
        f"its start; give held-out rows, set mixture.signal=train, or mixture.policy={KEEPS_PRIOR.name}"
    )


def domain_sizes(data: PreparedData, *, unit: WeightUnit) -> np.ndarray:
    """Return the size of one pass over each domain's training data, float64 [K], in the unit of the weights."""
    if unit == "examples":
        return np.array([shards.num_examples for shards in data.train], dtype=np.float64)
    columns = [shards.lengths if unit == "tokens" else shards.loss_lengths for shards in data.train]
    return np.array([int(column.sum(dtype=np.int64)) for column in columns], dtype=np.float64)


def recipe_weights(config: RunConfig, data: PreparedData) -> np.ndarray:
    """Return the weights a recipe starts with, float64 [K]: those it gives, none below the safeguards' floor.

    Raises:
        ValueError: As `named_weights` does.
    """
    return guarded_start(config.mixture, named_weights(config, data), domain_set=data.domain_set)


def named_weights(config: RunConfig, data: PreparedData) -> np.ndarray:
    """Return the weights of step 0 as a recipe gives them, float64 [K].

    Raises:
        ValueError: If the prior is no distribution over the domains, a file is missing, or the target is unknown.
    """
    sizes_K = domain_sizes(data, unit=config.mixture.weight_unit)
    return starting_weights(config.mixture, domain_set=data.domain_set, sizes_K=sizes_K)


def recipe_supply(config: RunConfig, data: PreparedData) -> Supply:
    """Return how much data a recipe has and how fast it is drawn.

    Approximate: rows count as full, and for units other than tokens every token counts as an average one.
    """
    sizes_K = domain_sizes(data, unit=config.mixture.weight_unit)
    units_per_token = sizes_K.sum() / max(domain_sizes(data, unit="tokens").sum(), 1.0)
    return Supply(
        sizes_K=sizes_K,
        units_per_step=config.train.rows_per_batch * config.data.row_tokens * units_per_token,
        max_epochs=config.data.max_epochs_per_domain,
    )


def mixture_table(config: RunConfig, data: PreparedData, weights_K: np.ndarray) -> str:
    """Return one line a domain: starting weight, examples, tokens, and the passes over it by the end of the run.

    The forecast is for these weights, which the controller moves. A domain that would pass
    `data.max_epochs_per_domain` is marked: its share then goes to the others.
    """
    num_examples_K = domain_sizes(data, unit="examples")
    num_tokens_K = domain_sizes(data, unit="tokens")
    epochs_K = forecast_epochs(config, data, weights_K)
    limit = config.data.max_epochs_per_domain
    rows = []
    for i, name in enumerate(data.domain_set):
        mark = f"ends at {limit:g}" if limit is not None and epochs_K[i] > limit else ""
        sizes = (f"{num_examples_K[i]:,.0f}", f"{num_tokens_K[i]:,.0f}")
        rows.append((name, f"{weights_K[i]:.3f}", *sizes, f"{epochs_K[i]:.2f}", mark))
    return text_table(("domain", "weight", "examples", "tokens", "epochs", ""), rows)


def forecast_epochs(config: RunConfig, data: PreparedData, weights_K: np.ndarray) -> np.ndarray:
    """Return the passes over each domain by the end of the run if the weights stay, float64 [K]. Approximate."""
    size_K = domain_sizes(data, unit="examples")
    supply = recipe_supply(config, data)
    return epochs_at_end(
        weights_K,
        num_units=supply.units_per_step * config.train.steps,
        mean_cost_K=supply.sizes_K / np.maximum(size_K, 1),
        size_K=size_K,
    )
