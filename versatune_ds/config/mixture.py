"""Define the mixture section of a recipe.

The one idea: every number says over how many steps it acts, so that `update_every` can be changed without changing
the method; `paper: true` is the one switch back to the paper's per-update rule without safeguards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from versatune_ds.config.section import Section
from versatune_ds.config.wording import shown_value
from versatune_ds.domains import by_domain_name, domain_name, nearest_name
from versatune_ds.mixture.policies import DEFAULT, PAPER_DEFAULT, POLICIES, Policy, policy_named
from versatune_ds.mixture.policies.own import check_own_name, is_own
from versatune_ds.paths import expand_path


class StartFraction(Section):
    """Stand-in references: a fraction of the first measured loss."""

    start_fraction: float = Field(gt=0, lt=1)
    """Reference loss = this fraction of the loss at the first measurement."""


class SafeguardConfig(Section):
    """Bound what one update, and all of them together, may do to the weights (docs/method.md section 8)."""

    floor: float | None = Field(default=None, ge=0, lt=1)
    """Smallest weight of a domain; 0.1 / number of domains by default. A weight of 0 could never grow again."""
    cap: float = Field(default=0.9, gt=0, le=1)
    """Largest weight of a domain."""
    max_kl: float | None = Field(default=0.1, gt=0)
    """Largest KL divergence (nats) of one update's weights from those before it; null lifts the limit."""
    prior_pull: float = Field(default=0.0, ge=0, lt=1)
    """Share of the starting mixture blended into the weights per `sigma_interval_steps`; 0 turns the pull off."""
    effective_domains_alarm: float = Field(default=0.5, ge=0, le=1)
    """Warn when the effective number of domains falls below this fraction of the starting mixture's."""
    forgetting_budget: float | None = Field(default=None, gt=0)
    """Relative rise of a domain's loss over its best or its start that pulls weight back to it."""
    z: float = Field(default=1.0, ge=0)
    """Standard errors taken off a loss's rise before it counts as forgetting."""


class ExpansionConfig(Section):
    """Set the branch of `expansion` that the paper leaves open."""

    otherwise: Literal["hold", "multi_ability"] = "hold"
    """When forgetting is too strong: keep the target's weight, or update all domains as `versatune` does."""


class ExponentiatedConfig(Section):
    """Set the step of the exponentiated-gradient policies `doremi` and `sheared`."""

    step_size: float = Field(default=1.0, gt=0)
    """Learning rate of the weights (eta), per `sigma_interval_steps`."""
    smoothing: float = Field(default=1e-4, ge=0, lt=1)
    """Share of the uniform mixture blended in at every update (c)."""


class SteerConfig(Section):
    """Set the policy `steer`."""

    rate: float = Field(default=0.8, gt=0, le=1)
    """Share of the way towards the tracked mixture, per `sigma_interval_steps`."""
    anchor: float = Field(default=0.5, ge=0, le=1)
    """Share of the starting mixture in the tracked one: 0 learns most, 1 stays at the start; it protects what the start
    gave weight to."""
    potential: Literal["nats", "relative"] = "nats"
    """The rest is proportional to it: nats of loss above the reference, or their share of the loss (the paper's g)."""


class Stage(Section):
    """One stage of the policy `schedule`."""

    step: int = Field(ge=0)
    """First optimizer step of the stage."""
    weights: dict[str, float]
    """One weight a domain, summing to 1."""

    @field_validator("weights")
    @classmethod
    def _have_names_of_one_form(cls, weights: dict[str, float]) -> dict[str, float]:
        """Write domains' names as all of them are written."""
        return by_domain_name(weights, what="mixture.schedule")


class MixtureConfig(Section):
    """Say how the mixture starts and by which rule it moves."""

    policy: str = DEFAULT.name
    """Update rule of the weights: the name of a built-in policy, or a user's own as `my_module:my_policy`; `versatune`
    by default where `paper` is true."""
    prior: Literal["uniform", "proportional"] | dict[str, float] | Path = "proportional"
    """Weights at step 0: a prior.json, a mapping, uniform, or proportional to the data."""
    prior_uniform_share: float | None = Field(default=None, ge=0, le=1)
    """Share of the uniform mixture blended into the prior at step 0, by default 0.5 for `steer` and 0 for the others: 0
    protects what the base model knows most of, 1 learns most of what it knows least of."""
    reference: StartFraction | dict[str, float] | Path | None = None
    """Reference losses: a reference.json, a mapping (nats per loss token), or {start_fraction: 0.85}."""
    reference_check: Literal["refuse", "warn"] = "refuse"
    """What to do with references that cannot steer: stop before training, or say so and go on."""
    sigma: float = Field(default=0.5, ge=0)
    """Step size: a domain's weight grows by 1 + sigma * potential per `sigma_interval_steps`, then renormalised."""
    sigma_interval_steps: int = Field(default=50, ge=1)
    """Optimizer steps that sigma, delta and the other rates are stated for (docs/method.md's reference interval)."""
    update_every: int = Field(default=50, ge=1)
    """Optimizer steps between updates; how often we look, not how far we go."""
    signal: Literal["validation", "train"] = "validation"
    """Losses that steer: of held-out examples, or of the batches trained on since the last update. `train` costs no
    extra pass but at step 0 and at the end, which are held out as ever. Its errors are those of independent tokens, too
    small; from the second pass over a domain on, its losses lie below held-out ones, and below held-out references."""
    target: str | None = None
    """Domain that `expansion`, `target_only` and `target_uniform` are about; `steer` may have one."""
    target_share: float = Field(default=0.5, gt=0, lt=1)
    """The target's weight under `target_uniform`, and under `steer` where it has a target."""
    delta: float = Field(default=0.02, gt=0, le=1)
    """Weight that `expansion` adds to its target per `sigma_interval_steps`."""
    epsilon: float = Field(default=0.01, ge=0)
    """`expansion` grows its target while the others' mean forgetting stays below epsilon * the target's potential."""
    weight_unit: Literal["tokens", "loss_tokens", "examples"] = "tokens"
    """What a weight is a share of."""
    paper: bool = False
    """Run the rule as the paper states it: one factor an update whatever its length, every safeguard off."""
    safeguards: SafeguardConfig = SafeguardConfig()
    expansion: ExpansionConfig = ExpansionConfig()
    exponentiated: ExponentiatedConfig = ExponentiatedConfig()
    steer: SteerConfig = SteerConfig()
    schedule: tuple[Stage, ...] = ()
    """Stages of the policy `schedule`, by step; the first starts at step 0."""

    @property
    def rule(self) -> Policy:
        """Return the policy that `policy` names."""
        return policy_named(self.policy)

    @property
    def has_target(self) -> bool:
        """Return whether the policy has a target domain under these settings."""
        return self.rule.has_target(self.target)

    @field_validator("policy", mode="before")
    @classmethod
    def _read_policy(cls, value: Any) -> Any:
        """Check that there is such a policy; a misspelt one is answered with the nearest name.

        Of a user's own only the form is checked here: reading a recipe, or a run's record, executes nothing.
        """
        if isinstance(value, str) and is_own(value):
            check_own_name(value)
        elif value not in tuple(POLICIES):
            hint = nearest_name(str(value)[:60], tuple(POLICIES))
            raise ValueError(f"mixture.policy: unknown policy {shown_value(value)}; {hint}")
        return value

    @field_validator("prior", mode="before")
    @classmethod
    def _read_prior(cls, value: Any) -> Any:
        """Tell the forms of the prior apart, so that a mistake is reported once and in the user's words."""
        if isinstance(value, Mapping):
            return _numbers_by_domain(value, what="mixture.prior")
        if isinstance(value, str) and value not in ("uniform", "proportional"):
            return _path(value, what="mixture.prior")
        if not isinstance(value, str | Path):
            raise ValueError(
                f"mixture.prior: expected uniform, proportional, a mapping or a file, got {shown_value(value)}"
            )
        return value

    @field_validator("reference", mode="before")
    @classmethod
    def _read_reference(cls, value: Any) -> Any:
        """Tell the forms of the reference apart; `start_fraction` is never taken for a domain's name."""
        if value is None or isinstance(value, StartFraction | Path):
            return value
        if isinstance(value, str):
            return _path(value, what="mixture.reference")
        if not isinstance(value, Mapping):
            raise ValueError(
                f"mixture.reference: expected a file, a mapping or start_fraction, got {shown_value(value)}"
            )
        if "start_fraction" not in value:
            return _numbers_by_domain(value, what="mixture.reference")
        return StartFraction(start_fraction=_start_fraction(value))

    @field_validator("schedule", mode="before")
    @classmethod
    def _read_stages(cls, value: Any) -> Any:
        """Accept a stage written as a pair [step, weights]."""
        if not isinstance(value, list | tuple):
            return value
        return [{"step": s[0], "weights": s[1]} if isinstance(s, list | tuple) and len(s) == 2 else s for s in value]

    @field_validator("target")
    @classmethod
    def _has_the_form_of_domain_names(cls, name: str | None) -> str | None:
        """Write a domain's name as all of them are written."""
        return None if name is None else domain_name(name)

    @model_validator(mode="after")
    def _has_what_the_policy_needs(self) -> MixtureConfig:
        """Check that the policy's own keys are there, ordered, and not at odds with others."""
        if self.paper and "policy" not in self.model_fields_set:
            object.__setattr__(self, "policy", PAPER_DEFAULT.name)
        steps = [stage.step for stage in self.schedule]
        if steps != sorted(set(steps)):
            raise ValueError(f"mixture.schedule: the steps of stages must rise, got {steps}")
        if not is_own(self.policy):  # a user's own is checked where it is imported, in policy_settings
            if self.prior_uniform_share is None:
                object.__setattr__(self, "prior_uniform_share", self.rule.uniform_share)
            self.check_for_rule(self.rule)
        return self

    def check_for_rule(self, rule: Policy) -> None:
        """Check the keys that a policy needs.

        Raises:
            ValueError: If a key is missing, or contradicts the policy.
        """
        if self.paper and not rule.is_in_paper_mode:
            raise ValueError(
                f"mixture.paper: {self.policy!r} is no rule of the paper's; set mixture.policy={PAPER_DEFAULT.name} "
                "as well"
            )
        if rule.has_given_target_share and self.target is not None and self.target_share > self.safeguards.cap:
            raise ValueError(
                f"mixture.target_share: {self.target_share} is more than a domain may have, {self.safeguards.cap} "
                "(mixture.safeguards.cap); lower the one or raise the other"
            )
        if rule.target == "required" and self.target is None:
            raise ValueError(f"mixture.target: policy {self.policy!r} needs it; name the domain to strengthen")
        if rule.needs_stages and (not self.schedule or self.schedule[0].step != 0):
            raise ValueError(f"mixture.schedule: policy {self.policy!r} needs stages, the first with step: 0")


def _path(text: str, *, what: str) -> Path:
    """Return the path of a file that a key names, `~` and variables expanded."""
    try:
        return Path(expand_path(text))
    except ValueError as error:
        raise ValueError(f"{what}: {shown_value(text)}: {error}") from None


def _numbers_by_domain(values: Mapping[Any, Any], *, what: str) -> dict[str, float]:
    """Return a mapping of numbers; raise ValueError naming the first entry that is none."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{what}.{name}: expected a number, got {shown_value(value)}")
    return by_domain_name({name: float(value) for name, value in values.items()}, what=what)


def _start_fraction(values: Mapping[str, Any]) -> float:
    """Return the start fraction of a mapping that holds it; raise ValueError where it is none or not alone."""
    fraction, others = values["start_fraction"], [str(key) for key in values if key != "start_fraction"]
    if others:
        raise ValueError(f"mixture.reference: start_fraction stands alone, found also {', '.join(others)}")
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction < 1:
        raise ValueError(
            f"mixture.reference.start_fraction: expected a number between 0 and 1, got {shown_value(fraction)}"
        )
    return float(fraction)
