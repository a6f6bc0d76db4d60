"""Run the real controller on losses that cost nothing: a synthetic learner's or a recorded file's.

Only the learner is simulated; weights, safeguards, schedule and decisions are those of training.
`sweep_overrides` returns the combinations of settings to compare.

Shape legend: **K** domains.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from versatune_ds.config import MixtureConfig
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.controller import Controller
from versatune_ds.mixture.decision import Decision
from versatune_ds.mixture.followed_plan import FollowedPlan, plan_to_follow
from versatune_ds.mixture.measurement import Measurement
from versatune_ds.mixture.offline.curves import LearningCurves, synthetic_curves
from versatune_ds.mixture.offline.outlook import (
    Supply,
    collapse_warnings,
    epochs_by_domain,
    exhaustion_warnings,
    still_warnings,
)
from versatune_ds.mixture.offline.recorded_losses import LossRecord
from versatune_ds.mixture.reference import References, load_references
from versatune_ds.mixture.schedule import Schedule
from versatune_ds.mixture.settings import guarded_start, plan_of_prior, prior_weights, starting_weights

_STEPS_UNTIL_EFFECT = 3
"""A run plans two steps ahead by default, so its decisions act three steps later."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Simulation:
    """Result of a simulation."""

    decisions: tuple[Decision, ...]
    """As in decisions.jsonl; the first is the baseline."""
    epochs_K: np.ndarray | None
    """Passes over each domain's data by the last step; None where the data is unknown."""
    warnings: tuple[str, ...]

    def to_jsonl(self) -> str:
        """Return the decisions as the text of a decisions.jsonl."""
        return "".join(decision.to_json() + "\n" for decision in self.decisions)


def simulate(
    settings: MixtureConfig,
    *,
    domain_set: DomainSet,
    num_steps: int,
    sizes_K: Sequence[float] | np.ndarray | None = None,
    supply: Supply | None = None,
    seed: int = 0,
    noise: float = 0.0,
) -> Simulation:
    """Simulate a run on a synthetic learner.

    Where the policy needs references and the recipe has none, the learner's own are used, with a warning.

    Args:
        settings: The recipe's mixture section.
        domain_set: Domains of the run.
        num_steps: Optimizer steps of the run.
        sizes_K: Sizes of the data, for a proportional prior.
        supply: Data and draw rate, for epochs and exhaustion.
        seed: Seed of the learner and of its noise.
        noise: Relative standard error of a measured change.
    """
    schedule = _fresh_schedule(settings, domain_set=domain_set, sizes_K=sizes_K)
    # The learner, and references: the recipe's, or else what the learner reaches on each domain alone.
    has_references = settings.reference is not None
    references = load_references(settings, domain_set=domain_set) if has_references else References()
    known_K = prior_weights(settings, domain_set=domain_set, sizes_K=sizes_K)
    curves = synthetic_curves(known_K, seed=seed, reference_K=references.losses_K)
    notes: tuple[str, ...] = ()
    if not has_references and settings.rule.needs_references:
        references = References(losses_K=curves.reference_losses(share_of_run=0.5))
        notes = ("mixture.reference is not given: the synthetic learner's own references were taken",)
    if plan_to_follow(settings, plan_of_prior(settings), domain_set=domain_set, num_steps=num_steps) is not None:
        notes += ("the plan's track and bounds are not followed: they are predictions of another learner",)
    # Training, and the decisions that it responds to.
    losses = _trained(
        curves, schedule=schedule, num_steps=num_steps, update_every=settings.update_every, seed=seed, noise=noise
    )
    decisions = _decide(losses, settings, references=references, schedule=schedule, domain_set=domain_set)
    return _simulation(
        decisions,
        schedule,
        num_steps=num_steps,
        settings=settings,
        domain_set=domain_set,
        supply=supply,
        notes=notes,
    )


def simulate_losses(
    settings: MixtureConfig,
    records: Sequence[LossRecord],
    *,
    domain_set: DomainSet,
    sizes_K: Sequence[float] | np.ndarray | None = None,
    supply: Supply | None = None,
) -> Simulation:
    """Simulate a run on recorded losses, which do not respond to the weights.

    Raises:
        ValueError: If the start, the references or the settings are wrong.
    """
    schedule = _fresh_schedule(settings, domain_set=domain_set, sizes_K=sizes_K)
    references = load_references(settings, domain_set=domain_set)
    plan = plan_to_follow(settings, plan_of_prior(settings), domain_set=domain_set, num_steps=records[-1].step)
    decisions = _decide(records, settings, references=references, schedule=schedule, domain_set=domain_set, plan=plan)
    return _simulation(
        decisions,
        schedule,
        num_steps=records[-1].step,
        settings=settings,
        domain_set=domain_set,
        supply=supply,
        notes=("the losses are recorded: under other weights they would have been others",),
    )


def _fresh_schedule(
    settings: MixtureConfig, *, domain_set: DomainSet, sizes_K: Sequence[float] | np.ndarray | None
) -> Schedule:
    """Return the schedule of a run that has decided nothing yet."""
    start_K = starting_weights(settings, domain_set=domain_set, sizes_K=sizes_K)
    return Schedule(guarded_start(settings, start_K, domain_set=domain_set))


def _decide(
    records: Iterable[LossRecord],
    settings: MixtureConfig,
    *,
    references: References,
    schedule: Schedule,
    domain_set: DomainSet,
    plan: FollowedPlan | None = None,
) -> list[Decision]:
    """Return a new controller's decisions; each is in the schedule before the next record is asked for."""
    controller = Controller(
        domain_set=domain_set, settings=settings, weights_K=schedule.weights_at(0), references=references, plan=plan
    )
    decisions = []
    for record in records:
        decision = controller.decide_measured(
            record.measurement,
            step=record.step,
            effective_step=record.step + _STEPS_UNTIL_EFFECT,
            is_baseline=record.update == 0,
        )
        schedule.append(decision.effective_step, controller.weights_K)
        decisions.append(decision)
    return decisions


def _trained(
    curves: LearningCurves, *, schedule: Schedule, num_steps: int, update_every: int, seed: int, noise: float
) -> Iterator[LossRecord]:
    """Train a learner step by step with the weights of a growing schedule, and yield its losses at every update."""
    knowledge_K = curves.start_K
    for step in range(num_steps + 1):
        if step > 0:
            weights_K = schedule.weights_at(step)
            knowledge_K = curves.trained(knowledge_K, weights_K=weights_K, share_of_run=1.0 / num_steps)
        if step % update_every == 0:
            measurement = _measured(curves.loss(knowledge_K), step=step, seed=seed, noise=noise)
            yield LossRecord(update=step // update_every, step=step, measurement=measurement)


def _measured(loss_K: np.ndarray, *, step: int, seed: int, noise: float) -> Measurement:
    """Return the measurement of true losses [K] with a relative error, drawn from (seed, step)."""
    exact = Measurement.of_means(loss_K)
    if noise == 0.0:
        return exact
    drawn_K = np.random.default_rng([seed, step]).normal(0.0, noise / np.sqrt(2), loss_K.shape)
    error_K = noise * loss_K
    return Measurement.unpaired(
        loss_K * (1.0 + drawn_K),
        loss_stderr_K=error_K,
        num_loss_tokens_K=exact.num_loss_tokens_K,
        change_stderr_K=error_K,
    )


def _simulation(
    decisions: Sequence[Decision],
    schedule: Schedule,
    *,
    num_steps: int,
    settings: MixtureConfig,
    domain_set: DomainSet,
    supply: Supply | None,
    notes: tuple[str, ...],
) -> Simulation:
    """Return the simulation with its epochs after `num_steps` steps and its warnings."""
    epochs = None if supply is None or num_steps < 1 else epochs_by_domain(schedule, supply=supply, num_steps=num_steps)
    warnings = [*notes, *collapse_warnings(decisions, policy=settings.rule, domain_set=domain_set)]
    if settings.rule.moves:
        warnings += still_warnings(decisions, policy=settings.rule, domain_set=domain_set)
    if supply is not None and epochs is not None:
        warnings += exhaustion_warnings(epochs, supply=supply, domain_set=domain_set)
    return Simulation(
        decisions=tuple(decisions), epochs_K=None if epochs is None else epochs[-1], warnings=tuple(warnings)
    )


def sweep_overrides(sweeps: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the overrides of every combination.

    Example: ["mixture.sigma=0.1,0.3", "mixture.policy=versatune,steer"] -> four pairs of overrides.

    Args:
        sweeps: Texts `key=value,value,...`; commas within brackets or braces do not separate.

    Raises:
        ValueError: If a text has no `=` or no value.
    """
    return list(product(*(_values_of(sweep) for sweep in sweeps)))


def _values_of(sweep: str) -> list[str]:
    key, equals, text = sweep.partition("=")
    values = _split_outside_brackets(text)
    if not equals or not key or any(not value for value in values):
        raise ValueError(f"--sweep {sweep!r}: expected key=value,value,..., for example mixture.sigma=0.1,0.3,1")
    return [f"{key}={value}" for value in values]


def _split_outside_brackets(text: str) -> list[str]:
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]
