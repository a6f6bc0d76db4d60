"""Say in one sentence why the weights moved.

The one idea: the sentence is made from the numbers of the decision alone, never from hopes about the policy.

Shape legend: **K** domains.
"""

from __future__ import annotations

import numpy as np

from versatune_ds.domains import DomainSet
from versatune_ds.mixture.measurement import Measurement
from versatune_ds.mixture.policies import forgetting_against_tolerance
from versatune_ds.mixture.settings import FIXED_POLICIES, PolicySettings
from versatune_ds.mixture.signals import Signals

BASELINE_REASON = "Baseline before training: the losses are recorded, the weights stay at the start."


def reason_to_skip(measurement: Measurement, *, domain_set: DomainSet) -> str | None:
    """Return why a measurement cannot decide anything, or None where it can."""
    bad = [name for name, is_bad in zip(domain_set, measurement.is_not_finite(), strict=True) if is_bad]
    if bad:
        return f"Update skipped: the loss of {', '.join(bad)} is not a number; the weights stay."
    if not np.any(measurement.is_present()):
        return "Update skipped: no domain was measured; the weights stay."
    return None


def reason_for(
    signals: Signals,
    *,
    before_K: np.ndarray,
    after_K: np.ndarray,
    settings: PolicySettings,
    domain_set: DomainSet,
) -> str:
    """Return the sentence of an update that was decided."""
    moved = _largest_moves(before_K, after_K, domain_set=domain_set)
    if settings.policy in FIXED_POLICIES:
        return f"Policy {settings.policy}: a fixed mixture{', held' if not moved else f'; {moved}'}."
    if settings.policy == "expansion":
        return f"{_expansion_reason(signals, settings=settings, domain_set=domain_set)}; {moved or 'no weight moved'}."
    if settings.policy in ("versatune", "steer"):
        return f"{_potential_reason(signals, settings=settings, domain_set=domain_set)}; {moved or 'no weight moved'}."
    return f"Policy {settings.policy}: {moved or 'no weight moved'}."


def _potential_reason(signals: Signals, *, settings: PolicySettings, domain_set: DomainSet) -> str:
    """Name the domains with most and least left to learn, in the measure that the policy follows."""
    if np.all(np.isnan(signals.learnable_potential_K)):
        return f"Policy {settings.policy}: no potential is known"
    if np.nanmax(signals.learnable_potential_K) <= 0:
        return f"Policy {settings.policy}: every domain is at or below its reference loss"
    potential_K, form = signals.learnable_potential_K.copy(), "potential {:.3f}"
    if settings.policy == "steer" and settings.potential == "nats":
        potential_K = np.maximum(signals.loss_K - signals.reference_loss_K, 0.0)
        form = "{:.3f} nats above its reference"
    if settings.target_id is not None and len(potential_K) > 1:
        potential_K[settings.target_id] = np.nan  # its share is given
    if np.all(np.isnan(potential_K)):
        return f"Policy {settings.policy}: no potential is known"
    most, least = int(np.nanargmax(potential_K)), int(np.nanargmin(potential_K))
    return (
        f"Policy {settings.policy}: {domain_set.names[most]} has most left to learn "
        f"({form.format(potential_K[most])}), {domain_set.names[least]} least ({form.format(potential_K[least])})"
    )


def _expansion_reason(signals: Signals, *, settings: PolicySettings, domain_set: DomainSet) -> str:
    """State the comparison that decides whether the target gains."""
    target_id = settings.target_id
    assert target_id is not None, "policy_settings resolves the target of a targeted policy"
    forgetting, tolerated = forgetting_against_tolerance(signals, settings)
    is_tolerated = forgetting < tolerated
    otherwise = "holds" if settings.otherwise == "hold" else "follows versatune like all domains"
    return (
        f"Policy expansion: the other domains' mean forgetting {forgetting:.4f} is "
        f"{'below' if is_tolerated else 'not below'} the tolerated {tolerated:.4f}, so {domain_set.names[target_id]} "
        f"{'gains' if is_tolerated else otherwise}"
    )


def _largest_moves(before_K: np.ndarray, after_K: np.ndarray, *, domain_set: DomainSet) -> str:
    """Name the largest rise and the largest fall of a weight; empty where nothing moved visibly."""
    change_K = after_K - before_K
    if np.max(np.abs(change_K)) < 5e-5:
        return ""
    most, least = int(np.argmax(change_K)), int(np.argmin(change_K))
    return (
        f"{domain_set.names[most]} gained most ({before_K[most]:.4f} to {after_K[most]:.4f}), "
        f"{domain_set.names[least]} gave most ({before_K[least]:.4f} to {after_K[least]:.4f})"
    )
