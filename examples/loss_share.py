"""A policy of your own: every domain gets a share of the data in proportion to its loss.

Run it from the folder above this one:

    versatune simulate recipes/quickstart.yaml mixture.policy=examples.loss_share:LOSS_SHARE
    versatune train recipes/quickstart.yaml mixture.policy=examples.loss_share:LOSS_SHARE run.name=loss_share
"""

from __future__ import annotations

import numpy as np

from versatune_ds import Policy, PolicySettings, Signals


def update(weights_K: np.ndarray, signals: Signals, step: int, settings: PolicySettings) -> np.ndarray:
    """Return weights [K] moved half-way to the domains' shares of the summed loss, per interval.

    Example: weights (.5, .5), losses (3, 1), one interval -> half-way to (.75, .25): (.625, .375).
    """
    loss_K = np.nan_to_num(signals.loss_K, nan=float(np.nanmean(signals.loss_K)))
    share = 1.0 - 0.5**settings.num_intervals
    return (1.0 - share) * weights_K + share * loss_K / loss_K.sum()


LOSS_SHARE = Policy(name="loss_share", update=update, reads=("sigma_interval_steps",), source="examples/loss_share.py")
