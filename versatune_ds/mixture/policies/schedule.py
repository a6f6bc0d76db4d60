"""A mixture that changes at given steps, whatever the losses are.

Shape legend: **K** domains.
"""

from __future__ import annotations

import numpy as np

from versatune_ds.mixture.policies.policy import Policy, PolicySettings
from versatune_ds.mixture.policies.signals import Signals


def update(weights_K: np.ndarray, signals: Signals, step: int, settings: PolicySettings) -> np.ndarray:
    """Return the weights [K] of the stage that contains `step`, the step they take effect.

    Approximate: a stage begins at the first update that takes effect at or after its step.
    """
    return [stage_K for first_step, stage_K in settings.stages if first_step <= step][-1]


SCHEDULE = Policy(
    name="schedule",
    update=update,
    start=lambda start: start.stages[0][1],
    is_fixed=True,
    needs_stages=True,
    reads=("schedule",),
    method="`versatune_ds` on a data mixture that changes at steps set beforehand",
    source="The recipe's own `mixture.schedule`",
)
