"""Repeat what a network may fail at, with growing pauses, and log each repetition."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from versatune_ds.data.remote.addresses import redacted
from versatune_ds.data.remote.errors import RemoteUnreachableError

_logger = logging.getLogger(__name__)

PAUSES_SECONDS = [1.0, 4.0, 15.0]
"""Pause before each repetition."""
_TICK_SECONDS = 0.2

Result = TypeVar("Result")


def with_retries(
    action: Callable[[], Result],
    *,
    address: str,
    pauses_seconds: Sequence[float] | None = None,
    has_progressed: Callable[[], bool] = lambda: False,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> Result:
    """Return what an action returns; repeat it while the server is unreachable.

    Args:
        action: What to do.
        address: For the log.
        pauses_seconds: Pause before each repetition.
        has_progressed: Called after each failure; where it returns True, the repetitions are counted from one again.
        is_cancelled: Ends the repetitions, and a pause.

    Raises:
        RemoteError: If it is missing or denied, or still fails after the last repetition.
    """
    pauses_seconds = PAUSES_SECONDS if pauses_seconds is None else pauses_seconds
    num_failures = 0
    while True:
        try:
            return action()
        except RemoteUnreachableError as error:
            num_failures = 1 if has_progressed() else num_failures + 1
            if num_failures > len(pauses_seconds) or is_cancelled():
                raise
            seconds = pauses_seconds[num_failures - 1]
            text = "%s: %s; trying again in %g s (%d of %d)"
            _logger.warning(text, redacted(address), error, seconds, num_failures, len(pauses_seconds))
            _pause(seconds, is_cancelled=is_cancelled)


def _pause(seconds: float, *, is_cancelled: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and not is_cancelled():
        time.sleep(min(left, _TICK_SECONDS))
