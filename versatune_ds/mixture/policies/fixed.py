"""Baselines whose weights never move: what differs is the mixture they start with.

Shape legend: **K** domains.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from versatune_ds.mixture.policies.policy import Policy, PolicySettings, Start, from_prior
from versatune_ds.mixture.policies.signals import Signals
from versatune_ds.mixture.policies.simplex import equal_weights, inverse_weights, target_weights


def update(weights_K: np.ndarray, signals: Signals, step: int, settings: PolicySettings) -> np.ndarray:
    """Return the starting mixture [K]."""
    return settings.start_weights_K


def _target_weights(start: Start, *, share: float) -> np.ndarray:
    """Return a share for the target and equal shares of the rest for the others."""
    assert start.target_id is not None, "the config refuses a targeted policy without a target"
    return target_weights(start.target_id, share=share, num_domains=start.num_domains)


def _baseline(
    name: str,
    start: Callable[[Start], np.ndarray],
    *,
    target: Literal["none", "required"] = "none",
    reads: tuple[str, ...] = (),
    needs_sizes: bool = False,
    may_start_at_zero: bool = False,
) -> Policy:
    """Return a baseline that keeps its starting mixture."""
    return Policy(
        name=name,
        update=update,
        start=start,
        needs_sizes=needs_sizes,
        may_start_at_zero=may_start_at_zero,
        is_fixed=True,
        moves=False,
        target=target,
        reads=reads,
        method="`versatune_ds` on a fixed data mixture",
        source="VersaTune (arXiv 2411.11266), baselines; docs/method.md section 5",
        differences="A share is one of tokens unless `mixture.weight_unit` is `examples`, the paper's unit.",
    )


UNIFORM = _baseline("uniform", lambda start: equal_weights(start.num_domains))
CONSTANT = _baseline("constant", from_prior)
INVERSE = _baseline("inverse", lambda start: inverse_weights(start.prior()), reads=("prior",))
PROPORTIONAL = _baseline("proportional", lambda start: start.proportional(), needs_sizes=True)
TARGET_ONLY = _baseline(
    "target_only",
    lambda start: _target_weights(start, share=1.0),
    target="required",
    reads=("target",),
    may_start_at_zero=True,
)
TARGET_UNIFORM = _baseline(
    "target_uniform",
    lambda start: _target_weights(start, share=start.target_share),
    target="required",
    reads=("target", "target_share"),
)
