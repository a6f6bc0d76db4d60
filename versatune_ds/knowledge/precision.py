"""Decide how many sequences are enough: as many as an interval of a given width needs.

The width of an interval falls with the square root of the number of sequences, so every round logs how many are needed.
What no number of sequences changes is left out of that: text without a label (half its share is on either side of every
interval) and the labeller's errors, which are added after the last round (`reliability/interval_parts.py`).

Example: after 500 sequences the widest interval is plus or minus 0.04. For 0.02 about 500 * (0.04 / 0.02)^2 = 2,000 are
needed, so 1,500 are left; at 10 a second that takes two and a half minutes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from versatune_ds.domains import DomainSet
from versatune_ds.knowledge.estimate import Shares
from versatune_ds.progress import duration


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """How exact the shares are after some sequences."""

    num_sequences: int
    widest: float
    """Half the width of the widest 95 % interval, without what has no label."""
    domain: str
    """Whose interval that is."""
    unlabelled: float
    """Half the share of what has no label: every interval is as much wider, whatever the number of sequences."""
    wanted: float | None
    """`detect.interval`."""

    @property
    def is_enough(self) -> bool:
        """Return whether every interval is as narrow as the recipe wants, as far as sequences can narrow it."""
        return self.wanted is not None and self.widest <= self.wanted

    def num_needed(self) -> int | None:
        """Return about how many sequences the wanted interval needs; None where the recipe wants none."""
        if self.wanted is None:
            return None
        if self.is_enough:
            return self.num_sequences
        return math.ceil(self.num_sequences * (self.widest / self.wanted) ** 2)

    def describe(self, *, budget: int, sequences_per_second: float | None) -> str:
        """Return the widest interval, what the wanted one needs, and the time until drawing ends.

        Args:
            budget: `detect.num_sequences`.
            sequences_per_second: None where nothing was drawn, as after a restart.
        """
        text = f"widest interval +-{self.widest:.3f} ({self.domain})"
        if self.unlabelled >= 0.001:
            text += f", and +-{self.unlabelled:.3f} for text without a label, which no number of sequences changes"
        needed = self.num_needed()
        if needed is None or self.is_enough:
            return text
        text += f"; +-{self.wanted:g} needs about {needed:,} sequences"
        if needed > budget:
            text += f", detect.num_sequences allows {budget:,}"
        left = min(needed, budget) - self.num_sequences
        if sequences_per_second and left > 0:
            text += f"; about {duration(left / sequences_per_second)} left"
        return text


def precision_of(shares: Shares, *, domain_set: DomainSet, num_sequences: int, wanted: float | None) -> Precision:
    """Return how exact some shares are."""
    by_sequences_K = shares.half_widths_K - shares.unparsed / 2
    widest = int(np.argmax(by_sequences_K))
    return Precision(
        num_sequences=num_sequences,
        widest=float(by_sequences_K[widest]),
        domain=domain_set.names[widest],
        unlabelled=shares.unparsed / 2,
        wanted=wanted,
    )
