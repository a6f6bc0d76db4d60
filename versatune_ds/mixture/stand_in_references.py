"""Say when a domain reaches its stand-in reference: from there on it counts as having nothing left to learn.

A stand-in (`mixture.reference={start_fraction: 0.85}`) is a guess. Where it is too high, training passes it early, and
a policy that follows what is left to learn takes weight from a domain that still learns.
"""

from __future__ import annotations

import numpy as np

from versatune_ds.domains import DomainSet
from versatune_ds.mixture.reference import References


def reached_line(
    references: References, *, before_K: np.ndarray, loss_K: np.ndarray, start_K: np.ndarray, domain_set: DomainSet
) -> str | None:
    """Return which domains have reached their stand-in reference since the last measurement; None where none has.

    Args:
        references: Only those with a start fraction are stand-ins.
        before_K: Losses at the last measurement [K], NaN before the first.
        loss_K: Losses now [K].
        start_K: First losses [K].
        domain_set: The domains.
    """
    if references.losses_K is not None or references.start_fraction is None:
        return None
    reference_K = references.at_start(start_K)
    names = [domain_set.names[i] for i in np.flatnonzero((before_K > reference_K) & (loss_K <= reference_K))]
    if not names:
        return None
    fraction = references.start_fraction
    have = "has" if len(names) == 1 else "have"
    return (
        f"{', '.join(names)} {have} reached the stand-in reference, {fraction:g} of the first loss, and {have} nothing "
        "left to learn by it; lower mixture.reference.start_fraction, or measure references (versatune reference)"
    )
