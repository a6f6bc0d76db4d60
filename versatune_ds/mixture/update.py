"""One update of the weights: policy, then safeguards, then the reason in one sentence, then the decision.

Everything between a measurement's signals and the written decision is a pure function of values. The texts are part of
a decision's digest: changing one changes what `versatune replay` finds in older runs.

The signals are computed a second time without the confidence bound. Where the policy, the forgetting budget or a
bound of the plan would then have acted otherwise, the confidence bound acted, and the decision records it. Source:
docs/method.md section 8.

Shape legend: **K** domains.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from versatune_ds.domains import DomainSet
from versatune_ds.mixture.decision import Decision, by_domain
from versatune_ds.mixture.followed_plan import FollowedPlan, track_clause
from versatune_ds.mixture.inputs import Inputs
from versatune_ds.mixture.loss_limits import eased_budget, eased_plan_bounds
from versatune_ds.mixture.measurement import Measurement
from versatune_ds.mixture.overfitting import OverfitWatch
from versatune_ds.mixture.policies import Policy, PolicySettings, Signals
from versatune_ds.mixture.policies.acted import Acted, recorded_texts
from versatune_ds.mixture.safeguards import apply_safeguards
from versatune_ds.mixture.settings import SafeguardSettings
from versatune_ds.mixture.weights import as_weights

BASELINE_REASON = "Baseline before training: the losses are recorded, the weights stay at the start."


@dataclass(frozen=True, slots=True, kw_only=True)
class Occasion:
    """When a decision is made, and its inputs besides losses."""

    update: int
    """Number of the update; 0 is the measurement before training."""
    step: int
    """Optimizer steps done."""
    effective_step: int
    """Step from which new weights can apply."""
    inputs: Inputs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Move:
    """Result of an update."""

    weights_K: np.ndarray
    """Weights afterwards, float64."""
    acted: tuple[Acted, ...] = ()
    """Every safeguard that acted, in order."""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What decides how the weights of a run move: its policy with resolved settings, the safeguards, the domains."""

    policy: Policy
    settings: PolicySettings
    safeguards: SafeguardSettings
    domain_set: DomainSet
    plan: FollowedPlan | None = None
    """The plan that the run follows, if any."""


def reason_to_skip(measurement: Measurement, *, domain_set: DomainSet) -> str | None:
    """Return why an update must be skipped, or None where the measurement can decide."""
    bad = [name for name, is_bad in zip(domain_set, measurement.is_not_finite(), strict=True) if is_bad]
    if bad:
        return f"Update skipped: the loss of {', '.join(bad)} is not a number; the weights stay."
    if not np.any(measurement.is_present()):
        return "Update skipped: no domain was measured; the weights stay."
    return None


def kept_signals(measurement: Measurement, *, previous: Signals, domain_set: DomainSet) -> tuple[Acted, ...]:
    """Return a record of the domains that were not measured and kept their previous signals; empty if none.

    A domain that was never measured has no signals to keep and is not listed.
    """
    is_kept_K = ~measurement.is_present() & ~np.isnan(previous.loss_K)
    names = tuple(domain_set.names[i] for i in np.flatnonzero(is_kept_K))
    if not names:
        return ()
    return (Acted("previous signals kept", names, f"previous signals kept: {', '.join(names)}"),)


def move_weights(
    weights_K: np.ndarray,
    *,
    signals: Signals,
    unbounded: Signals,
    occasion: Occasion,
    elapsed_steps: int,
    rules: Rules,
    overfit: OverfitWatch,
) -> Move:
    """Return the update of weights [K]: proposed by the policy, bounded by the safeguards, with its reason.

    Args:
        weights_K: Weights decided before.
        signals: Signals of this update.
        unbounded: The same without the confidence bound, to record where that bound decided.
        occasion: Steps and inputs of the update; rates set by live control replace the policy's.
        elapsed_steps: Steps since the weights were last decided on a measurement.
        rules: What decides.
        overfit: Which domains over-fit.
    """
    # Proposed by the policy, bounded by the safeguards.
    policy, safeguards, domain_set = rules.policy, rules.safeguards, rules.domain_set
    settings = replace(rules.settings.after_steps(elapsed_steps), **occasion.inputs.rates())
    proposed_K = policy.update(weights_K, signals, occasion.effective_step, settings)
    # Where over-fitting lowers a weight, neither the plan's bounds nor the forgetting budget may raise it.
    is_reduced = safeguards.overfit == "reduce"
    rises, unbounded_rises = (overfit.without_rises(s) if is_reduced else s for s in (signals, unbounded))
    bounds_K = None if rules.plan is None else rules.plan.bounds_K
    guarded_K, acted = apply_safeguards(
        proposed_K,
        before_K=weights_K,
        start_weights_K=settings.start_weights_K,
        signals=rises,
        settings=safeguards,
        inputs=occasion.inputs,
        num_intervals=settings.num_intervals,
        domain_set=domain_set,
        plan_bounds_K=bounds_K,
        target_id=settings.target_id,
        overfit=overfit,
    )
    after_K = as_weights(guarded_K, "decided weights")

    # Why the weights moved, and what limited the move.
    reason = _reason_for(policy, signals, before_K=weights_K, after_K=after_K, settings=settings, domain_set=domain_set)
    by_rule = policy.limits(weights_K, signals, settings, domain_set.names) if policy.limits else ()
    by_confidence = (
        *(policy.bound_effect(signals, unbounded, settings) if policy.bound_effect else ()),
        *eased_plan_bounds(rises, unbounded=unbounded_rises, bounds_K=bounds_K, domain_set=domain_set),
        *eased_budget(rises, unbounded=unbounded_rises, budget=safeguards.forgetting_budget, domain_set=domain_set),
    )
    return Move(weights_K=after_K, acted=(*by_confidence, *by_rule, *acted), reason=reason)


def _reason_for(
    policy: Policy,
    signals: Signals,
    *,
    before_K: np.ndarray,
    after_K: np.ndarray,
    settings: PolicySettings,
    domain_set: DomainSet,
) -> str:
    """Return the reason of an update: what the policy saw, then which weights moved most."""
    moved = _largest_moves(before_K, after_K, domain_set=domain_set)
    if not policy.moves:
        change = f"; {moved}" if moved else ", held"
        return f"Policy {settings.policy}: a fixed mixture{change}."
    clauses = [policy.explain(signals, settings, domain_set.names)] if policy.explain else []
    if by_plan := track_clause(signals, domain_set.names):
        clauses.append(by_plan)
    return f"Policy {settings.policy}: {'; '.join([*clauses, moved or 'no weight moved'])}."


def _largest_moves(before_K: np.ndarray, after_K: np.ndarray, *, domain_set: DomainSet) -> str:
    """Describe the largest rise and the largest fall of a weight; empty where nothing moved visibly."""
    change_K = after_K - before_K
    if np.max(np.abs(change_K)) < 5e-5:
        return ""
    most, least = int(np.argmax(change_K)), int(np.argmin(change_K))
    return (
        f"{domain_set.names[most]} gained most ({before_K[most]:.4f} to {after_K[most]:.4f}), "
        f"{domain_set.names[least]} gave most ({before_K[least]:.4f} to {after_K[least]:.4f})"
    )


def write_decision(
    move: Move,
    *,
    before_K: np.ndarray,
    measurement: Measurement,
    signals: Signals,
    occasion: Occasion,
    domain_set: DomainSet,
) -> Decision:
    """Return the decision with its digest."""
    losses = {
        "mean": measurement.loss_K,
        "stderr": measurement.loss_stderr_K,
        "num_loss_tokens": measurement.num_loss_tokens_K,
    }
    decision = Decision(
        update=occasion.update,
        decided_at_step=occasion.step,
        effective_step=occasion.effective_step,
        losses=by_domain(losses, domain_set=domain_set),
        signals=by_domain(_signal_columns(signals), domain_set=domain_set),
        weights_before=domain_set.to_dict(before_K),
        weights_after=domain_set.to_dict(move.weights_K),
        acted=recorded_texts(move.acted),
        reason=move.reason,
        inputs=occasion.inputs.to_dict(),
    )
    return replace(decision, digest=decision.computed_digest())


def _signal_columns(signals: Signals) -> dict[str, np.ndarray]:
    """Return a decision's `signals` as columns [K]."""
    columns = {
        "learnable_potential": signals.learnable_potential_K,
        "forgetting_degree": signals.forgetting_degree_K,
        "forgetting_from_best": signals.forgetting_from_best_K,
        "forgetting_from_start": signals.forgetting_from_start_K,
        "reference_loss": signals.reference_loss_K,
        "change_stderr": signals.change_stderr_K,
        "change_from_best_stderr": signals.change_from_best_stderr_K,
        "change_from_start_stderr": signals.change_from_start_stderr_K,
    }
    if np.all(np.isnan(signals.planned_rise_K)):
        return columns  # no plan: the record, and with it the digest, is that of earlier versions
    return columns | {
        "track_loss": signals.track_loss_K,
        "track_stderr": signals.track_stderr_K,
        "planned_rise": signals.planned_rise_K,
    }
