"""Keep a command within a given time: what may still be started, and when what runs must end.

The last part of the time is for ending: runs are asked to stop, then killed, then results are written.

Worked example: 600 s. At 580 s whatever runs gets SIGTERM and saves; at 590 s it is killed; 10 s are for the results.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_CLOSING_SHARE = 0.1
_MOST_CLOSING_SECONDS = 20.0


class OutOfTimeError(Exception):
    """The time is over; what is done is on disk, and the same command resumes there."""


class TimeBudget:
    """The time that a command may take, and how long one piece of its work took so far.

    Args:
        seconds: Time for everything, None for no limit.
        guess_seconds: How long a piece of work takes, until one is done.
        began: When the time began, by `clock`.
        clock: Returns seconds.
    """

    def __init__(
        self,
        seconds: float | None,
        *,
        guess_seconds: float | None = None,
        began: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds = seconds
        self.longest_seconds: float | None = None
        """The longest piece of work so far; None before the first."""
        self._guess_seconds = guess_seconds
        self._clock = clock
        self.began = clock() if began is None else began
        self._closing = 0.0 if seconds is None else min(_MOST_CLOSING_SECONDS, _CLOSING_SHARE * seconds)

    def record(self, seconds: float) -> None:
        """Record how long a piece of work took."""
        self.longest_seconds = max(seconds, self.longest_seconds or 0.0)

    def guess(self, seconds: float | None) -> None:
        """Record a guess of how long a piece of work takes, unless there is one."""
        self._guess_seconds = seconds if self._guess_seconds is None else self._guess_seconds

    @property
    def next_seconds(self) -> float | None:
        """Return how long the next piece of work may take, in seconds: the longest so far, else the guess."""
        return self._guess_seconds if self.longest_seconds is None else self.longest_seconds

    def seconds_to_stop(self) -> float | None:
        """Return the seconds until what runs is asked to stop, at most 0 from then on; None without a limit."""
        return None if self.seconds is None else self.began + self.seconds - self._closing - self._clock()

    def seconds_to_kill(self) -> float | None:
        """Return the seconds until what still runs is killed."""
        left = self.seconds_to_stop()
        return None if left is None else left + self._closing / 2

    def is_over(self) -> bool:
        """Return whether it is time to stop."""
        left = self.seconds_to_stop()
        return left is not None and left <= 0

    def has_time_for_next(self) -> bool:
        """Return whether the next piece of work would end in time; without any guess, whether there is time at all."""
        left = self.seconds_to_stop()
        return left is None or left > (self.next_seconds or 0.0)

    def check(self, what: str) -> None:
        """Raise OutOfTimeError if the time is over before `what`."""
        if self.is_over():
            raise OutOfTimeError(what)
