"""Clauses that explain an update, shared by the policies that follow what is left to learn.

Shape legend: **K** domains.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from versatune_ds.mixture.policies.policy import PolicySettings
from versatune_ds.mixture.policies.signals import Signals


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
