"""DoReMi's rule: exponentiated gradient on the excess loss.

Shape legend: **K** domains.
"""

from __future__ import annotations

import numpy as np

from versatune_ds.mixture.policies.policy import Policy, PolicySettings, citation_of_rule, method_by_rule_of
from versatune_ds.mixture.policies.signals import Signals
from versatune_ds.mixture.policies.simplex import exponentiated, neutral, smoothed


def update(weights_K: np.ndarray, signals: Signals, step: int, settings: PolicySettings) -> np.ndarray:
    """Return the step along the excess loss max(l - l_reference, 0)."""
    excess_loss_K = np.maximum(neutral(signals.loss_K - signals.reference_loss_K), 0.0)
    return exponentiated_step(weights_K, excess_loss_K, settings)


def exponentiated_step(weights_K: np.ndarray, excess_loss_K: np.ndarray, settings: PolicySettings) -> np.ndarray:
    """Return (1 - c) * softmax(log P + eta * n * excess) + c / K."""
    exponent_K = settings.step_size * settings.num_intervals * excess_loss_K
    return smoothed(exponentiated(weights_K, exponent_K), share=settings.smoothing)


DOREMI = Policy(
    name="doremi",
    update=update,
    needs_references=True,
    reads=("exponentiated.step_size", "exponentiated.smoothing"),
    when_collapsing="lower mixture.exponentiated.step_size",
    method=method_by_rule_of("DoReMi", "2305.10429"),
    citation=citation_of_rule("DoReMi", "2305.10429"),
    source="DoReMi (arXiv 2305.10429), Algorithm 1; docs/method.md section 7",
    differences=(
        "The excess loss is clipped per domain, not per token (no reference model runs here), and measured on held-out "
        "rows; the weights are used online instead of averaged for a second training."
    ),
)
