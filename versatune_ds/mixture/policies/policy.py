"""What a policy is: one frozen value with an update rule and all that the rest of the package needs to know of it.

The rule is a pure function update(weights_K, signals, step, settings) -> weights_K in float64, not negative and with
sum 1. It knows nothing of files, ranks or safeguards. Rates are per interval, and `settings.num_intervals` is how many
intervals an update covers, so that updating twice as often makes two half steps.

A signal is NaN for a domain that was never measured. `simplex.neutral` replaces it by the mean of the others, which
leaves that domain's share as it is.

docs/extend.md shows how to add a policy, and has the fields of `Policy` in a table.

Shape legend: **K** domains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from versatune_ds.mixture.policies.acted import Acted
from versatune_ds.mixture.policies.signals import Signals


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PolicySettings:
    """Numbers that a rule may read, resolved from the recipe's `mixture` section (mixture/settings.py)."""

    policy: str
    sigma: float
    """`mixture.sigma`, the step size of `versatune` and `expansion`."""
    delta: float
    """`mixture.delta`, the weight that `expansion` adds to the target per interval."""
    epsilon: float
    """`mixture.epsilon`, the forgetting per unit of the target's potential that `expansion` tolerates per interval."""
    otherwise: str
    """`mixture.expansion.otherwise`, what `expansion` does beyond that: hold or multi_ability."""
    interval_steps: int | None
    """`mixture.sigma_interval_steps`, the steps that rates are stated for; None means once per update, as in the
    paper."""
    target_id: int | None
    """Domain id of `mixture.target`, None where the policy has no target."""
    cap: float
    """`mixture.safeguards.cap`, the largest weight of the target; 1 in paper mode."""
    step_size: float
    """`mixture.exponentiated.step_size`, eta of `doremi` and `sheared`."""
    smoothing: float
    """`mixture.exponentiated.smoothing`, c of `doremi` and `sheared`."""
    rate: float
    """`mixture.steer.rate`, fraction of the distance that `steer` moves per interval."""
    anchor: float
    """`mixture.steer.anchor`, weight of the starting mixture in `steer`'s target mixture."""
    potential: str
    """`mixture.steer.potential`, what `steer` tracks: nats or relative."""
    start_weights_K: np.ndarray
    """Weights at step 0."""
    stages: tuple[tuple[int, np.ndarray], ...] = ()
    """`mixture.schedule` as (first step, weights [K]), by step."""
    num_intervals: float = 1.0
    """Intervals that this update covers (exponent of 1 + sigma * g); 1 in paper mode."""

    def after_steps(self, elapsed_steps: int) -> PolicySettings:
        """Return the settings of an update that covers so many steps: elapsed / interval intervals."""
        if self.interval_steps is None:
            return self
        return replace(self, num_intervals=elapsed_steps / self.interval_steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a policy's starting weights may depend on. Prior and sizes are read only if the policy calls for them."""

    num_domains: int
    prior: Callable[[], np.ndarray]
    """Returns `mixture.prior` as weights [K]."""
    proportional: Callable[[], np.ndarray]
    """Returns the domains' shares of the training data [K]."""
    target_id: int | None
    """Domain id of `mixture.target`, None where the policy has no target."""
    target_share: float
    """`mixture.target_share`."""
    uniform_share: float
    """`mixture.prior_uniform_share`, or the policy's default."""
    temperature: float = 1.0
    """`mixture.prior_temperature`."""
    stages: tuple[tuple[int, np.ndarray], ...] = ()
    """Stages of `mixture.schedule`: (first step, weights [K])."""


Update = Callable[[np.ndarray, Signals, int, PolicySettings], np.ndarray]
Measure = Literal["potential", "nats"]
"""What a policy follows: the loss above its reference, as a share of the loss (the paper's g) or in nats per token."""

_FROM_PRIOR = ("prior", "prior_temperature", "prior_uniform_share")
_SAFEGUARDED = (
    "sigma_interval_steps",
    "safeguards.floor",
    "safeguards.cap",
    "safeguards.max_kl",
    "safeguards.prior_pull",
    "safeguards.effective_domains_alarm",
    "safeguards.forgetting_budget",
)
"""Keys that matter for every policy whose weights the safeguards bound."""


def from_prior(start: Start) -> np.ndarray:
    """Return the prior [K] at its temperature, blended with a share of uniform: how most policies start."""
    prior_K = at_temperature(start.prior(), start.temperature)
    if start.uniform_share == 0.0:
        return prior_K
    return (1.0 - start.uniform_share) * prior_K + start.uniform_share / start.num_domains


def at_temperature(weights_K: np.ndarray, temperature: float) -> np.ndarray:
    """Return weights raised to the power 1 / temperature and normalised [K]; a weight of 0 stays 0.

    Example: (.1, .9) at temperature 2 -> (.25, .75), since .1 ** .5 : .9 ** .5 = 1 : 3.

    Source: multilingual BERT's exponential smoothing; T5 (arXiv 1910.10683), section 3.5.2, temperature-scaled mixing.
    Differences from the paper: T5 caps the sizes of data sets first; here weights count as they are.
    """
    if temperature == 1.0:
        return weights_K
    with np.errstate(divide="ignore"):
        log_K = np.log(weights_K) / temperature
    powers_K = np.exp(log_K - log_K.max())  # the largest is 1, so that no temperature underflows all of them
    return powers_K / powers_K.sum()


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A rule that decides the weights, and what checks, safeguards, report and model card need to know of it.

    Only `name` and `update` are required. The defaults are those of a rule that starts from the prior, is bounded by
    the safeguards, and has neither references nor a target.
    """

    name: str
    """The value of `mixture.policy`."""
    update: Update
    """(weights [K], signals, step they take effect, settings) -> weights [K]."""
    start: Callable[[Start], np.ndarray] = from_prior
    """Returns the weights of step 0 [K]."""
    uniform_share: float = 0.0
    """Default of `mixture.prior_uniform_share`."""
    needs_sizes: bool = False
    """Whether its starting weights depend on the sizes of the data whatever the prior is."""
    is_fixed: bool = False
    """Whether the weights are given and no safeguard may change them: a baseline or a schedule."""
    moves: bool = True
    """Whether the weights change at all. If False, unchanged weights are not reported."""
    needs_references: bool = False
    """Whether it cannot decide without reference losses."""
    target: Literal["none", "optional", "required"] = "none"
    """Whether it reads `mixture.target`."""
    has_given_target_share: bool = False
    """Whether a target keeps `mixture.target_share`, which then may not be above the cap."""
    needs_stages: bool = False
    """Whether it reads `mixture.schedule`, which must then have a stage for step 0."""
    may_start_at_zero: bool = False
    """Whether a starting weight of 0 is intended, so that it needs no warning."""
    decides_before_training: bool = False
    """Whether the measurement before training already moves the weights."""
    is_in_paper_mode: bool = True
    """Whether `mixture.paper: true` makes sense for it."""
    reads: tuple[str, ...] = ()
    """Keys of the `mixture` section that it reads and others may not; see `all_reads`."""
    live_rates: tuple[str, ...] = ()
    """Rates that live control may replace while it runs."""
    measure: Callable[[Callable[[str], Any]], Measure | None] = lambda setting: None
    """Returns what it follows, for the report; it is given a function from a `mixture` key to the recipe's value."""
    explain: Callable[[Signals, PolicySettings, Sequence[str]], str] | None = None
    """Returns one clause that explains an update, from signals, settings and domain names."""
    limits: Callable[[np.ndarray, Signals, PolicySettings, Sequence[str]], tuple[Acted, ...]] | None = None
    """Returns the limits that the rule itself applied, such as a target stopped at its cap."""
    bound_effect: Callable[[Signals, Signals, PolicySettings], tuple[Acted, ...]] | None = None
    """Returns whether the confidence bound changed the rule's choice, from bounded and unbounded signals."""
    when_still: str = "the potentials are nearly equal or sigma is small"
    """Why its weights may not have moved, for a warning."""
    when_collapsing: str = "lower mixture.sigma"
    """What to do when it puts nearly all weight on few domains."""
    method: str = "a data mixture that moves while the model trains"
    """What a model card says of it: Markdown."""
    citation: str = "The software: `versatune_ds`"
    """What a model trained with it cites: Markdown."""
    source: str = ""
    """Paper, equation or page the rule comes from."""
    differences: str = ""
    """Where the rule differs from its source."""

    @property
    def all_reads(self) -> frozenset[str]:
        """Return the policy-specific `mixture` keys that this policy reads."""
        keys = {*self.reads, *(_FROM_PRIOR if self.start is from_prior else ())}
        return frozenset(keys if self.is_fixed else {*keys, *_SAFEGUARDED})

    def has_target(self, target: str | None) -> bool:
        """Return whether it has a target domain, given `mixture.target`."""
        return self.target == "required" or (self.target == "optional" and target is not None)


def arxiv(name: str, number: str) -> str:
    """Return a Markdown link to a paper."""
    return f"[{name}](https://arxiv.org/abs/{number})"


def method_by_rule_of(name: str, number: str) -> str:
    """Return the `method` of a policy whose rule is from a paper on arXiv."""
    return f"`versatune_ds`, whose data mixture moves while the model trains, by the rule of {arxiv(name, number)}"


def citation_of_rule(name: str, number: str) -> str:
    """Return the `citation` of a policy whose rule is from a paper on arXiv."""
    return f"The rule of the mixture: {name}, arXiv {number}; the software: `versatune_ds`"


def potential_clause(signals: Signals, settings: PolicySettings, names: Sequence[str]) -> str:
    """Return which domains have most and least left to learn, as learnable potential."""
    left_K = signals.learnable_potential_K
    return _most_and_least(signals, left_K, settings=settings, names=names, form="potential {:.3f}")


def nats_clause(signals: Signals, settings: PolicySettings, names: Sequence[str]) -> str:
    """Return which domains have most and least left to learn, in nats per token above the reference."""
    left_K = np.maximum(signals.loss_K - signals.reference_loss_K, 0.0)
    return _most_and_least(signals, left_K, settings=settings, names=names, form="{:.3f} nats above its reference")


def _most_and_least(
    signals: Signals, left_K: np.ndarray, *, settings: PolicySettings, names: Sequence[str], form: str
) -> str:
    """Return the clause on the domains with the largest and the smallest value; a target is excluded."""
    unknown = "no potential is known"
    if np.all(np.isnan(signals.learnable_potential_K)):
        return unknown
    if np.nanmax(signals.learnable_potential_K) <= 0:
        return "every domain is at or below its reference loss"
    left_K = left_K.copy()
    if settings.target_id is not None and len(left_K) > 1:
        left_K[settings.target_id] = np.nan
    if np.all(np.isnan(left_K)):
        return unknown
    most, least = int(np.nanargmax(left_K)), int(np.nanargmin(left_K))
    return (
        f"{names[most]} has most left to learn ({form.format(left_K[most])}), "
        f"{names[least]} least ({form.format(left_K[least])})"
    )
