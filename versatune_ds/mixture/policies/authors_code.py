"""The rule that the repository published with VersaTune runs, for comparison with the paper's, and two that it could.

The repository's function takes an optional reference loss, which its caller never passes; beside the score that it then
has stands a commented-out one, called the official version there. So there are three scores.

Shape legend: **K** domains.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from versatune_ds.mixture.policies.policy import Policy, PolicySettings
from versatune_ds.mixture.policies.signals import Signals
from versatune_ds.mixture.policies.simplex import exponentiated, neutral
from versatune_ds.mixture.policies.versatune import VERSATUNE


def update(weights_K: np.ndarray, signals: Signals, step: int, settings: PolicySettings) -> np.ndarray:
    """Return P * exp(n * l), normalised, with the raw loss l."""
    return exponentiated(weights_K, settings.num_intervals * neutral(signals.loss_K))


def update_by_excess(weights_K: np.ndarray, signals: Signals, step: int, settings: PolicySettings) -> np.ndarray:
    """Return P * exp(n * (l - l_reference)), normalised; a loss below its reference lowers the weight."""
    return exponentiated(weights_K, settings.num_intervals * neutral(signals.loss_K - signals.reference_loss_K))


def update_by_relative_excess(
    weights_K: np.ndarray, signals: Signals, step: int, settings: PolicySettings
) -> np.ndarray:
    """Return P * exp(n * (l - l_reference) / l), normalised: to first order the paper's rule with sigma 1."""
    excess_K = neutral((signals.loss_K - signals.reference_loss_K) / signals.loss_K)
    return exponentiated(weights_K, settings.num_intervals * excess_K)


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
AUTHORS_CODE_EXCESS = replace(
    AUTHORS_CODE,
    name="authors_code_excess",
    update=update_by_excess,
    needs_references=True,
    measure=lambda setting: "nats",
    differences=(
        "The repository's function computes it where it is given a reference loss, which its caller never does. As in "
        "authors_code the optimizer is not restarted, and the exponent is scaled by the intervals elapsed."
    ),
)
AUTHORS_CODE_RELATIVE = replace(
    AUTHORS_CODE,
    name="authors_code_relative",
    update=update_by_relative_excess,
    needs_references=True,
    measure=lambda setting: "potential",
    differences=(
        "A commented-out line of the repository, called the official version there. As in authors_code the optimizer "
        "is not restarted, and the exponent is scaled by the intervals elapsed."
    ),
)
