"""The paper's multi-ability rule: weights grow with the learnable potential.

Shape legend: **K** domains.
"""

from __future__ import annotations

import numpy as np

from versatune_ds.mixture.policies.policy import Policy, PolicySettings, arxiv, potential_clause
from versatune_ds.mixture.policies.signals import Signals
from versatune_ds.mixture.policies.simplex import neutral, normalise


def update(weights_K: np.ndarray, signals: Signals, step: int, settings: PolicySettings) -> np.ndarray:
    """Return P' = P * (1 + sigma * g)^n, normalised; n = elapsed steps / interval.

    Example: P (.5, .5), g (.4, 0), sigma .5, n 1 -> (.6, .5) / 1.1 = (.5455, .4545).
    """
    return normalise(weights_K * growth(signals, settings))


def growth(signals: Signals, settings: PolicySettings) -> np.ndarray:
    """Return (1 + sigma * g)^n, the factor [K] of one update before normalising."""
    return (1.0 + settings.sigma * neutral(signals.learnable_potential_K)) ** settings.num_intervals


VERSATUNE = Policy(
    name="versatune",
    update=update,
    needs_references=True,
    reads=("sigma",),
    live_rates=("sigma",),
    measure=lambda setting: "potential",
    explain=potential_clause,
    method=f"{arxiv('VersaTune', '2411.11266')} (`versatune_ds`), whose data mixture moves while the model trains",
    citation="The method: VersaTune, arXiv 2411.11266",
    source="VersaTune (arXiv 2411.11266), Algorithm 2; docs/method.md section 3",
    differences="The exponent n, so that the update interval is not part of the method (1 in paper mode).",
)
