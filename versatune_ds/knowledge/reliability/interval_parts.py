"""Divide an interval into the part that more sequences would narrow and the rest, with what would narrow that.

Example: +-.14 may be +-.02 for the number of sequences and +-.135 for the labeller's errors. Four times the sequences
make it +-.135; a text of every domain whose domain is known says more about the labeller.

Shape legend: **K** domains.
"""

from __future__ import annotations

import numpy as np

from versatune_ds.domains import DomainSet
from versatune_ds.knowledge.estimate import Shares
from versatune_ds.knowledge.reliability.source_error import NORMAL_95


def widest_interval(
    found: Shares, *, drawn: Shares, error_K: np.ndarray, domain_set: DomainSet, is_known: bool
) -> str | None:
    """Return the parts of the widest interval and what would narrow it; None where more sequences alone would.

    Args:
        found: The shares with their final intervals.
        drawn: The same shares with the intervals of the last round, which know of no labeller's errors.
        error_K: Errors of the labeller, as standard deviations.
        domain_set: The domains.
        is_known: Whether the errors are of texts that the user labelled (`--labelled`).
    """
    widest = int(np.argmax(found.half_widths_K))
    by_sequences = float(drawn.half_widths_K[widest]) - drawn.unparsed / 2
    by_labels, by_unlabelled = NORMAL_95 * float(error_K[widest]), drawn.unparsed / 2
    if max(by_labels, by_unlabelled) < by_sequences:
        return None
    whose = "the labelled texts" if is_known else "texts left out of its fit"
    parts = [f"+-{by_sequences:.3f} for the number of sequences", f"+-{by_labels:.3f} for labels ({whose})"]
    if by_unlabelled >= 0.001:
        parts.append(f"+-{by_unlabelled:.3f} for text without a label")
    advice = ["more labelled texts of every domain" if is_known else "labelled texts of every domain (--labelled FILE)"]
    if by_unlabelled > by_labels:
        advice = ["sequences that begin as in the model's training (detect.sampling.prefix)", "a domain for the rest"]
    advice.append("better descriptions (data.domains.NAME.description)")
    return (
        f"the interval of {domain_set.names[widest]} is +-{found.half_widths_K[widest]:.3f}: {', '.join(parts)}; more "
        f"sequences narrow the first part alone, {' or '.join(advice)} the rest"
    )
