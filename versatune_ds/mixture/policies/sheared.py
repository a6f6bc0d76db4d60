"""Sheared LLaMA's dynamic batch loading: exponentiated gradient on the difference to the reference loss.

Shape legend: **K** domains.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from versatune_ds.mixture.policies.doremi import DOREMI, exponentiated_step
from versatune_ds.mixture.policies.policy import PolicySettings, citation_of_rule, method_by_rule_of
from versatune_ds.mixture.policies.signals import Signals
from versatune_ds.mixture.policies.simplex import neutral


def update(weights_K: np.ndarray, signals: Signals, step: int, settings: PolicySettings) -> np.ndarray:
    """Return DoReMi's step along l - l_reference, not clipped."""
    return exponentiated_step(weights_K, neutral(signals.loss_K - signals.reference_loss_K), settings)


SHEARED = replace(
    DOREMI,
    name="sheared",
    update=update,
    method=method_by_rule_of("Sheared LLaMA", "2310.06694"),
    citation=citation_of_rule("Sheared LLaMA", "2310.06694"),
    source=(
        "Sheared LLaMA (arXiv 2310.06694), dynamic batch loading, and its code (princeton-nlp/LLM-Shearing); "
        "docs/method.md section 7"
    ),
    differences="The paper states max(l - l_reference, 0); its code does not clip, and this follows the code.",
)
