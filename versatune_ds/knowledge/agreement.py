"""Compare what two methods of detection found, and explain weights that are close to zero.

Generation shows what a model writes by itself, likelihood what it can predict. They may differ for good reasons, so no
mean is taken: both are shown, and each domain in which they differ by more than their errors gets a line.
"""

from __future__ import annotations

import numpy as np

from versatune_ds.domains import DomainSet
from versatune_ds.knowledge.estimate import Shares

_LOW_SHARE = 0.1
"""Share of the uniform weight below which a weight is explained; the default floor of training."""


def disagreements(generation: Shares, likelihood: Shares, *, domain_set: DomainSet) -> dict[str, str]:
    """Return {domain: how the methods differ}, for domains in which they do so by more than their errors.

    Two shares differ if their distance is larger than sqrt(a^2 + b^2), where a and b are half their intervals' widths:
    the half width of the interval of a difference of independent numbers.
    """
    distance_K = generation.shares_K - likelihood.shares_K
    error_K = np.hypot(generation.half_widths_K, likelihood.half_widths_K)
    found = {}
    for k, name in enumerate(domain_set):
        if abs(distance_K[k]) <= error_K[k]:
            continue
        shares = f"generation {generation.shares_K[k]:.3f}, likelihood {likelihood.shares_K[k]:.3f}"
        if distance_K[k] > 0:
            found[name] = f"{shares}: the model writes more about it than its predictions of held-out rows suggest"
        else:
            found[name] = f"{shares}: the model predicts its rows better than its own writing suggests"
    return found


def low_weight_notes(shares: Shares, *, domain_set: DomainSet, reason: str) -> dict[str, str]:
    """Return {domain: note} for every weight below a tenth of the uniform one.

    Args:
        shares: The weights.
        domain_set: Their domains.
        reason: What a low weight means with the method that found it.
    """
    limit = _LOW_SHARE / len(domain_set)
    return {
        name: f"weight {shares.shares_K[k]:.4f} is below a tenth of uniform ({limit:.4f}): {reason}; the 95 % interval "
        f"ends at {shares.upper_K[k]:.3f}; training starts at the floor where the policy has one"
        for k, name in enumerate(domain_set)
        if shares.shares_K[k] < limit
    }
