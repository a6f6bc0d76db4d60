"""Log the progress of long work: a line every few seconds, with the remaining time.

The lines are plain text, so a terminal, a file and a Slurm log show them alike. Work that ends before the first line is
due logs nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from versatune_ds.monitor.plain import duration

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

_LOG_SECONDS = 5.0


def with_progress(items: Iterable[Item], *, num_items: int, what: str) -> Iterator[Item]:
    """Yield items, and log how many are done; an item counts as done when the next one is requested.

    Example: `labelled: 120 of 600 sequences  0:42 left`.

    Args:
        items: The work.
        num_items: How many there are.
        what: Text of the line, with `%s` for the numbers: `labelled: %s sequences`.
    """
    started = logged = time.monotonic()
    for num_done, item in enumerate(items):
        now = time.monotonic()
        if num_done and now - logged >= _LOG_SECONDS:
            logged = now
            left = (now - started) / num_done * (num_items - num_done)
            logger.info("%s  %s left", what % f"{num_done:,} of {num_items:,}", duration(left))
        yield item
