"""Define the sections within the mixture section of a recipe: one policy's settings, the safeguards, the references."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from versatune_ds.config.section import Section
from versatune_ds.domains import by_domain_name


class StartFraction(Section):
    """Stand-in references: a fraction of the first measured loss."""

    start_fraction: float = Field(gt=0, lt=1)
    """Use this fraction of each domain's first measured loss as its reference loss, where no references are known."""


class SafeguardConfig(Section):
    """Limits on what one update, and all updates together, may do to the weights (docs/method.md section 8)."""

    floor: float | None = Field(default=None, ge=0, lt=1)
    """Smallest weight of a domain; by default 0.1 / number of domains. A weight of 0 could never grow again."""
    cap: float = Field(default=0.9, gt=0, le=1)
    """Largest weight of a domain."""
    max_kl: float | None = Field(default=0.1, gt=0)
    """Largest KL divergence of the new weights from the old ones in one update, in nats; null sets no limit. Lower it
    for slower changes."""
    prior_pull: float = Field(default=0.0, ge=0, lt=1)
    """Share of the starting mixture blended into the weights per `sigma_interval_steps`; 0 turns the pull off. Raise it
    to stay closer to the start."""
    effective_domains_alarm: float = Field(default=0.5, ge=0, le=1)
    """Warn when the effective number of domains falls below this fraction of the starting mixture's."""
    forgetting_budget: float | None = Field(default=None, gt=0)
    """Relative rise of a domain's loss above its best or its first value from which weight is moved back to the domain;
    null turns this off."""
    z: float = Field(default=1.0, ge=0)
    """Standard errors subtracted from the rise of a loss before it counts as forgetting. Raise it if noise triggers
    `forgetting_budget` or `overfit`."""
    overfit: Literal["off", "warn", "reduce"] = "warn"
    """What to do about a domain whose held-out loss has risen above its best for two updates while its training loss
    fell: `warn` logs and records it, `reduce` also halves its weight per `sigma_interval_steps`, down to the floor,
    until the held-out loss has come back. Fixed mixtures are only warned about. With `mixture.signal: train` nothing
    is measured that could tell."""


class ExpansionConfig(Section):
    """The branch of `expansion` that the paper leaves open."""

    otherwise: Literal["hold", "multi_ability"] = "hold"
    """When forgetting is too strong: `hold` keeps the target's weight, `multi_ability` updates all domains as
    `versatune` does."""


class ExponentiatedConfig(Section):
    """The step of the exponentiated-gradient policies `doremi` and `sheared`."""

    step_size: float = Field(default=1.0, gt=0)
    """Learning rate of the weights (eta), per `sigma_interval_steps`."""
    smoothing: float = Field(default=1e-4, ge=0, lt=1)
    """Share of the uniform mixture blended in at every update (c)."""


class SteerConfig(Section):
    """Settings of the policy `steer`."""

    rate: float = Field(default=0.8, gt=0, le=1)
    """Share of the way towards the tracked mixture that the weights move per `sigma_interval_steps`."""
    anchor: float = Field(default=0.5, ge=0, le=1)
    """Share of the starting mixture in the tracked one: 0 learns most, 1 stays at the start. Raise it to protect the
    domains that the start gives weight to."""
    potential: Literal["nats", "relative"] = "nats"
    """What the rest of the tracked mixture is proportional to: `nats` of loss above the reference, or their share of
    the loss (`relative`, the paper's g)."""
    follow_plan: bool = True
    """Where the prior is a plan.json: give weight back to a domain that would end above the bound it was planned for,
    and record how far every loss is from its predicted course. `false` takes the plan as a start and nothing more."""


class Stage(Section):
    """One stage of the policy `schedule`."""

    step: int = Field(ge=0)
    """First optimizer step of the stage."""
    weights: Annotated[dict[str, float], AfterValidator(partial(by_domain_name, what="mixture.schedule"))]
    """Weight of each domain; they sum to 1."""
