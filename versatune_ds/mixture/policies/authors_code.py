"""The rule that the repository published with VersaTune runs, for comparison with the paper's.

Shape legend: **K** domains.
"""

from __future__ import annotations

import numpy as np

from versatune_ds.mixture.policies.policy import Policy, PolicySettings
from versatune_ds.mixture.policies.signals import Signals
from versatune_ds.mixture.policies.simplex import exponentiated, neutral
from versatune_ds.mixture.policies.versatune import VERSATUNE


def update(weights_K: np.ndarray, signals: Signals, step: int, settings: PolicySettings) -> np.ndarray:
    """Return P * exp(n * l), normalised, with the raw loss l."""
    return exponentiated(weights_K, settings.num_intervals * neutral(signals.loss_K))


AUTHORS_CODE = Policy(
    name="authors_code",
    update=update,
    method=VERSATUNE.method,
    citation=VERSATUNE.citation,
    source="The repository published with VersaTune (8023looker/VersaTune); docs/method.md section 6",
    differences=(
        "From the paper: this is what the repository runs, not Algorithm 2: no reference, no sigma. From the "
        "repository: it restarts the optimizer at each update (not reproduced); the exponent is n * l, n the intervals "
        "elapsed (1 in paper mode)."
    ),
)
