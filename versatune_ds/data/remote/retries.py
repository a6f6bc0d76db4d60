"""Repeat what a network may fail at, with growing pauses, and log each repetition."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from versatune_ds.data.remote.addresses import shown
from versatune_ds.data.remote.errors import RemoteUnreachableError

_logger = logging.getLogger(__name__)

PAUSES_SECONDS = [1.0, 4.0, 15.0]
"""Pause before each repetition."""

Result = TypeVar("Result")


def with_retries(
    action: Callable[[], Result], *, address: str, pauses_seconds: Sequence[float] | None = None
) -> Result:
    """Return what an action returns; repeat it while the other side is unreachable.

    Args:
        action: What to do.
        address: For the log.
        pauses_seconds: Pause before each repetition.

    Raises:
        RemoteError: If it is missing or denied, or still fails after the last repetition.
    """
    pauses_seconds = PAUSES_SECONDS if pauses_seconds is None else pauses_seconds
    for number, seconds in enumerate(pauses_seconds, start=1):
        try:
            return action()
        except RemoteUnreachableError as error:
            text = "%s: %s; trying again in %g s (%d of %d)"
            _logger.warning(text, shown(address), error, seconds, number, len(pauses_seconds))
            time.sleep(seconds)
    return action()
