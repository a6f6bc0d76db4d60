"""Sheared LLaMA's dynamic batch loading: exponentiated gradient on the difference to the reference loss.

Shape legend: **K** domains.
"""

from __future__ import annotations

import numpy as np

from versatune_ds.mixture.policies.policy import Policy, PolicySettings, arxiv
from versatune_ds.mixture.policies.signals import Signals
from versatune_ds.mixture.policies.simplex import exponentiated, neutral, smoothed


def update(weights_K: np.ndarray, signals: Signals, step: int, settings: PolicySettings) -> np.ndarray:
    """Return (1 - c) * softmax(log P + eta * n * (l - l_reference)) + c / K, not clipped."""
    excess_loss_K = neutral(signals.loss_K - signals.reference_loss_K)
    exponent_K = settings.step_size * settings.num_intervals * excess_loss_K
    return smoothed(exponentiated(weights_K, exponent_K), share=settings.smoothing)


SHEARED = Policy(
    name="sheared",
    update=update,
    needs_references=True,
    reads=("exponentiated.step_size", "exponentiated.smoothing"),
    when_collapsing="lower mixture.exponentiated.step_size",
    method=(
        "`versatune_ds`, whose data mixture moves while the model trains, by the rule of "
        f"{arxiv('Sheared LLaMA', '2310.06694')}"
    ),
    citation="The rule of the mixture: Sheared LLaMA, arXiv 2310.06694; the software: `versatune_ds`",
    source=(
        "Sheared LLaMA (arXiv 2310.06694), dynamic batch loading, and its code (princeton-nlp/LLM-Shearing); "
        "docs/method.md section 7"
    ),
    differences="The paper states max(l - l_reference, 0); its code does not clip, and this follows the code.",
)
