"""Baselines whose weights never move: what differs is the mixture they start with.

Shape legend: **K** domains.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from versatune_ds.mixture.policies.policy import Policy, PolicySettings, Start
from versatune_ds.mixture.policies.signals import Signals
from versatune_ds.mixture.policies.simplex import equal_weights, inverse_weights, target_weights


def update(weights_K: np.ndarray, signals: Signals, step: int, settings: PolicySettings) -> np.ndarray:
    """Return the starting mixture [K]."""
    return settings.start_weights_K


def _target_weights(start: Start, *, share: float) -> np.ndarray:
    assert start.target_id is not None, "the config refuses a targeted policy without a target"
    return target_weights(start.target_id, share=share, num_domains=start.num_domains)


CONSTANT = Policy(
    name="constant",
    update=update,
    is_fixed=True,
    moves=False,
    method="`versatune_ds` on a fixed data mixture",
    source="VersaTune (arXiv 2411.11266), baselines; docs/method.md section 5",
    differences="A share is one of tokens unless `mixture.weight_unit` is `examples`, the paper's unit.",
)
UNIFORM = replace(CONSTANT, name="uniform", start=lambda start: equal_weights(start.num_domains))
INVERSE = replace(CONSTANT, name="inverse", start=lambda start: inverse_weights(start.prior()), reads=("prior",))
PROPORTIONAL = replace(CONSTANT, name="proportional", start=lambda start: start.proportional(), needs_sizes=True)
TARGET_ONLY = replace(
    CONSTANT,
    name="target_only",
    start=lambda start: _target_weights(start, share=1.0),
    target="required",
    reads=("target",),
    may_start_at_zero=True,
)
TARGET_UNIFORM = replace(
    CONSTANT,
    name="target_uniform",
    start=lambda start: _target_weights(start, share=start.target_share),
    target="required",
    reads=("target", "target_share"),
)
