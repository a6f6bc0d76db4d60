"""Divide questions into batches, as many on every rank where a forward pass needs all ranks (ZeRO-3).

A rank with fewer questions than another makes up the number with idle batches: one question whose result is discarded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def batches_of(places: Sequence[int], *, batch_size: int, num_batches: int | None = None) -> list[Sequence[int]]:
    """Return the places in batches, in order; empty ones at the end are idle.

    Example: places 3 5 8 with batches of 2 are (3 5) (8), and with num_batches=3 (3 5) (8) ().

    Args:
        places: What this rank works on.
        batch_size: Places of a batch.
        num_batches: Batches of every rank; None for as many as the places need.
    """
    batches = [places[first : first + batch_size] for first in range(0, len(places), batch_size)]
    return batches + [()] * ((num_batches or 0) - len(batches))


def num_batches_of_every_rank(num_questions: int, *, world_size: int, batch_size: int) -> int:
    """Return the batches of the rank with most questions, where each takes every world_size-th one.

    Example: of 5 questions two ranks have 3 and 2; in batches of 2 both make 2.
    """
    return math.ceil(math.ceil(num_questions / world_size) / batch_size)
