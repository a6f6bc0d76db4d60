"""Define the mixture section of a recipe.

Rates are stated for `sigma_interval_steps` optimizer steps, so that `update_every` can be changed without changing the
method. `paper: true` switches to the paper's rule: one factor an update, no safeguards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PrivateAttr, field_validator, model_validator

from versatune_ds.config.error_messages import shown_value
from versatune_ds.config.mixture_sections import (
    ExpansionConfig,
    ExponentiatedConfig,
    SafeguardConfig,
    Stage,
    StartFraction,
    SteerConfig,
)
from versatune_ds.config.section import Section
from versatune_ds.domains import by_domain_name, domain_name, nearest_name
from versatune_ds.mixture.planning.plan_file import is_plan_file
from versatune_ds.mixture.policies import DEFAULT, PAPER_DEFAULT, POLICIES, Policy, policy_named
from versatune_ds.own_code import check_own_name, import_function, is_own
from versatune_ds.paths import expand_path

BUILT_IN_SIGNALS = ("validation", "train")
"""Values of `mixture.signal` besides a function of the user's own."""


_UPDATES_OF_SHORT_RUNS = 4
"""By default no run is measured fewer times than this, the measurement at its end included."""

_ABOUT_POLICY = (
    f"Rule that updates the weights: {', '.join(POLICIES)}, or one of your own as `my_module:my_policy`. With "
    f"`mixture.paper=true` the default is `{PAPER_DEFAULT.name}`."
)


class MixtureConfig(Section):
    """How the mixture starts, and the rule that updates it."""

    policy: str = Field(default=DEFAULT.name, description=_ABOUT_POLICY)
    prior: Literal["uniform", "proportional"] | dict[str, float] | Path = "proportional"
    """Weights at step 0: a prior.json (from `versatune detect`), a plan.json (from `versatune plan`), a mapping,
    `uniform`, or `proportional` to the data."""
    prior_uniform_share: float | None = Field(default=None, ge=0, le=1)
    """Share of the uniform mixture blended into the prior at step 0; by default 0.5 for `steer` and 0 for the others,
    and 0 where the prior is a plan.json, which is used unchanged. 0 protects what the base model knows most about, 1
    learns most of what it knows least about."""
    prior_temperature: float = Field(default=1.0, gt=0)
    """Temperature of the prior at step 0, before `prior_uniform_share`: weights are proportional to prior ** (1 /
    temperature). 1 leaves it as it is, 3 with `prior: proportional` is the usual compromise between proportional and
    equal shares, a very large one is uniform; below 1 large domains gain."""
    reference: StartFraction | dict[str, float] | Path | None = None
    """Reference losses: a reference.json (from `versatune reference`), a mapping (nats per loss token), or
    {start_fraction: 0.85}."""
    reference_check: Literal["refuse", "warn"] = "refuse"
    """What to do if the reference losses cannot guide the policy: stop before training, or log a warning and train."""
    sigma: float = Field(default=0.5, ge=0)
    """Step size of `versatune`: a domain's weight is multiplied by 1 + sigma * potential per `sigma_interval_steps`,
    then all are normalised."""
    sigma_interval_steps: int = Field(default=50, ge=1)
    """Optimizer steps for which sigma, delta and the other rates are stated (the reference interval of
    docs/method.md)."""
    update_every: int = Field(default=50, ge=1)
    """Optimizer steps between updates of the weights. It sets how often losses are measured, not how fast weights
    change. In a run of fewer than 200 steps the default is a quarter of `train.steps`, so that the mixture is updated
    at all (not with `paper: true`, where it does set how fast). A run that gets more steps keeps its interval."""
    signal: str = "validation"
    """Losses that updates use: `validation`, of held-out examples; `train`, of the batches trained on since the last
    update; or what a function of your own returns, `my_module:my_signal` (docs/extend.md). `train` saves the
    measurements, except those at step 0 and at the end, which stay held out. Its standard errors assume independent
    tokens and are too small; from the second pass over a domain on, its losses are below held-out losses and
    references. With one of your own held-out losses are measured too; give references in its unit."""
    target: Annotated[str, AfterValidator(domain_name)] | None = None
    """Domain to strengthen: required by `expansion`, `target_only` and `target_uniform`, optional for `steer`."""
    target_share: float = Field(default=0.5, gt=0, lt=1)
    """Weight of the target under `target_uniform`, and under `steer` with a target."""
    delta: float = Field(default=0.02, gt=0, le=1)
    """Weight that `expansion` adds to its target per `sigma_interval_steps`."""
    epsilon: float = Field(default=0.01, ge=0)
    """`expansion` grows its target while the mean forgetting of the other domains is below epsilon * the target's
    potential."""
    weight_unit: Literal["tokens", "loss_tokens", "examples"] = "tokens"
    """What a weight is a share of: all tokens, tokens that bear loss, or examples."""
    paper: bool = False
    """Use the rule exactly as the paper states it: one factor an update, whatever its length in steps, and no
    safeguards."""
    safeguards: SafeguardConfig = SafeguardConfig()
    expansion: ExpansionConfig = ExpansionConfig()
    exponentiated: ExponentiatedConfig = ExponentiatedConfig()
    steer: SteerConfig = SteerConfig()
    schedule: tuple[Stage, ...] = ()
    """Stages of the policy `schedule`, by step; the first starts at step 0."""

    _given_rule: Policy | None = PrivateAttr(default=None)
    _given_signal: Callable[..., Any] | None = PrivateAttr(default=None)

    @property
    def rule(self) -> Policy:
        """Return the policy that `policy` names, or the one given as a value in its place."""
        return policy_named(self.policy) if self._given_rule is None else self._given_rule

    @property
    def given_rule(self) -> Policy | None:
        """Return the policy given as a value; None where `policy` names it."""
        return self._given_rule

    def with_update_every(self, update_every: int) -> MixtureConfig:
        """Return a copy with another interval between updates, which does not count as given in the recipe."""
        copy = self.model_copy()
        object.__setattr__(copy, "update_every", update_every)
        return copy

    def for_length(self, num_steps: int) -> MixtureConfig:
        """Return the section for a run of so many steps: a short one is updated more often, unless the recipe says."""
        if self.paper or "update_every" in self.model_fields_set:
            return self
        default = type(self).model_fields["update_every"].default
        return self.with_update_every(max(1, min(default, num_steps // _UPDATES_OF_SHORT_RUNS)))

    def with_rule(self, rule: Policy) -> MixtureConfig:
        """Return a copy whose rule is a value, for a policy that no module has."""
        copy = self.model_copy()
        copy._given_rule = rule
        return copy

    @property
    def has_own_signal(self) -> bool:
        """Return whether a function of the user's own supplies the losses."""
        return is_own(self.signal)

    @property
    def signal_function(self) -> Callable[..., Any] | None:
        """Return the function that `signal` names, or the one given in its place; None for the built-in signals.

        Raises:
            ValueError: If it cannot be imported.
        """
        if self._given_signal is not None or not self.has_own_signal:
            return self._given_signal
        return import_function(self.signal, key="mixture.signal")

    @property
    def given_signal(self) -> Callable[..., Any] | None:
        """Return the signal given as a function; None where `signal` names it."""
        return self._given_signal

    def with_signal(self, function: Callable[..., Any]) -> MixtureConfig:
        """Return a copy whose signal is a function, for one that no module has."""
        copy = self.model_copy()
        copy._given_signal = function
        return copy

    @property
    def watches_overfitting(self) -> bool:
        """Return whether training losses are collected beside held-out ones, to find domains that over-fit."""
        return self.signal == "validation" and not self.paper and self.safeguards.overfit != "off"

    @property
    def has_target(self) -> bool:
        """Return whether the policy has a target domain under these settings."""
        return self.rule.has_target(self.target)

    @field_validator("policy", mode="before")
    @classmethod
    def _read_policy(cls, value: Any) -> Any:
        """Check that there is such a policy.

        Of a user's own policy only the form is checked here: reading a recipe executes no code.
        """
        if isinstance(value, str) and is_own(value):
            check_own_name(value, key="mixture.policy", expected="a name, or my_module:my_policy")
        elif value not in tuple(POLICIES):
            hint = nearest_name(str(value)[:60], tuple(POLICIES))
            raise ValueError(f"mixture.policy: unknown policy {shown_value(value)}; {hint}")
        return value

    @field_validator("signal", mode="before")
    @classmethod
    def _read_signal(cls, value: Any) -> Any:
        """Check that there is such a signal; of one's own only the form, as of a policy."""
        if isinstance(value, str) and is_own(value):
            check_own_name(value, key="mixture.signal", expected="validation, train, or my_module:my_signal")
        elif value not in BUILT_IN_SIGNALS:
            raise ValueError(
                f"mixture.signal: expected validation, train, or my_module:my_signal, got {shown_value(value)}"
            )
        return value

    @field_validator("prior", mode="before")
    @classmethod
    def _read_prior(cls, value: Any) -> Any:
        """Distinguish the forms of the prior here, so that a mistake is reported once, in the user's words."""
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
        """Distinguish the forms of the reference; `start_fraction` is never read as the name of a domain."""
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

    @model_validator(mode="after")
    def _has_what_the_policy_needs(self) -> MixtureConfig:
        """Fill in the policy's defaults, and check that its keys are there and do not contradict others."""
        if self.paper and "policy" not in self.model_fields_set:
            object.__setattr__(self, "policy", PAPER_DEFAULT.name)
        if self.signal != "validation" and self.safeguards.overfit == "reduce":
            why = f"mixture.signal={self.signal} decides by others"
            if self.signal == "train":
                why = "mixture.signal=train measures no held-out ones"
            raise ValueError(
                f"mixture.safeguards.overfit: reduce compares held-out with training losses, and {why}; set "
                "mixture.signal=validation, or overfit: off"
            )
        steps = [stage.step for stage in self.schedule]
        if steps != sorted(set(steps)):
            raise ValueError(f"mixture.schedule: the steps of stages must rise, got {steps}")
        if not is_own(self.policy):  # a user's own policy is checked where it is imported, in policy_settings
            if self.prior_uniform_share is None:
                object.__setattr__(self, "prior_uniform_share", self.default_uniform_share(self.rule))
            self.check_for_rule(self.rule)
        return self

    def default_uniform_share(self, rule: Policy) -> float:
        """Return the policy's share of uniform, and 0 where the prior is a plan, the one file that a recipe looks into.

        A plan was chosen for its predicted losses: blended with uniform it would be another mixture.
        """
        is_planned = isinstance(self.prior, Path) and is_plan_file(self.prior)
        return 0.0 if is_planned else rule.uniform_share

    def check_for_rule(self, rule: Policy) -> None:
        """Check the keys that a policy needs.

        Raises:
            ValueError: If a key is missing, or contradicts the policy.
        """
        if self.paper and not rule.is_in_paper_mode:
            raise ValueError(
                f"mixture.paper: policy {self.policy!r} is not in the paper; set mixture.policy={PAPER_DEFAULT.name} "
                "as well"
            )
        if rule.has_given_target_share and self.target is not None and self.target_share > self.safeguards.cap:
            raise ValueError(
                f"mixture.target_share: {self.target_share} is more than a domain may have, {self.safeguards.cap} "
                "(mixture.safeguards.cap); lower the share or raise the cap"
            )
        if rule.target == "required" and self.target is None:
            raise ValueError(f"mixture.target: policy {self.policy!r} needs it; name the domain to strengthen")
        if rule.needs_stages and (not self.schedule or self.schedule[0].step != 0):
            raise ValueError(f"mixture.schedule: policy {self.policy!r} needs stages, the first with step: 0")


def _path(text: str, *, what: str) -> Path:
    """Return the path that a key gives, with `~` and variables expanded."""
    try:
        return Path(expand_path(text))
    except ValueError as error:
        raise ValueError(f"{what}: {shown_value(text)}: {error}") from None


def _numbers_by_domain(values: Mapping[Any, Any], *, what: str) -> dict[str, float]:
    """Return a mapping of numbers; raise ValueError for the first value that is not a number."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{what}.{name}: expected a number, got {shown_value(value)}")
    return by_domain_name({name: float(value) for name, value in values.items()}, what=what)


def _start_fraction(values: Mapping[str, Any]) -> float:
    """Return the value of `start_fraction`; raise ValueError if it is not a fraction or has other keys beside it."""
    fraction, others = values["start_fraction"], [str(key) for key in values if key != "start_fraction"]
    if others:
        raise ValueError(
            f"mixture.reference: expected start_fraction alone, found also {', '.join(others)}; leave them out"
        )
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction < 1:
        raise ValueError(
            f"mixture.reference.start_fraction: expected a number between 0 and 1, got {shown_value(fraction)}"
        )
    return float(fraction)
