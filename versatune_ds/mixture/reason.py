"""Describe in one sentence why the weights moved, from the numbers of the decision alone.

The texts are part of a decision's digest: changing one changes what `versatune replay` finds in older runs.

Shape legend: **K** domains.
"""

from __future__ import annotations

import numpy as np

from versatune_ds.domains import DomainSet
from versatune_ds.mixture.measurement import Measurement
from versatune_ds.mixture.policies import Policy, PolicySettings, Signals

BASELINE_REASON = "Baseline before training: the losses are recorded, the weights stay at the start."


def reason_to_skip(measurement: Measurement, *, domain_set: DomainSet) -> str | None:
    """Return why an update must be skipped, or None where the measurement can decide."""
    bad = [name for name, is_bad in zip(domain_set, measurement.is_not_finite(), strict=True) if is_bad]
    if bad:
        return f"Update skipped: the loss of {', '.join(bad)} is not a number; the weights stay."
    if not np.any(measurement.is_present()):
        return "Update skipped: no domain was measured; the weights stay."
    return None


def reason_for(
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
        return f"Policy {settings.policy}: a fixed mixture{', held' if not moved else f'; {moved}'}."
    clauses = [policy.explain(signals, settings, domain_set.names)] if policy.explain else []
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
