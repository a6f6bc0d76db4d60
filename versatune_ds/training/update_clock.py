"""Decide after which steps losses are measured: every `mixture.update_every`, or less often where that takes too long.

Only a clock shows what measuring costs, and no two clocks agree. So only rank 0 reads one, and records its result as a
whole number in the decision; all ranks, a resumed run and a replay count with that number.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from versatune_ds.mixture.decision import Decision
from versatune_ds.mixture.inputs import Inputs

logger = logging.getLogger(__name__)

_HEADROOM = 1.25
"""Margin for lowering the stretch; without it, the stretch would change at almost every update."""


class UpdateClock:
    """Count the steps between updates, and time what measuring costs.

    Args:
        update_every: `mixture.update_every`.
        max_share: `validation.max_share`; None measures every time.
        clock: Returns seconds.
    """

    def __init__(
        self, *, update_every: int, max_share: float | None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._update_every = update_every
        self._max_share = max_share
        self.clock = clock
        self._stretch = 1
        self._last_step = 0
        self._measuring_seconds = 0.0
        self.begin_steps(0)

    def begin_steps(self, step: int) -> None:
        """Time the steps after this one."""
        self._first_step, self._began = step, self.clock()

    def is_due(self, step: int) -> bool:
        """Return whether losses are measured after a step.

        Example: every 4 steps, stretched by 2 after step 4: not after step 8, but after 12.
        """
        num_passed = step // self._update_every - self._last_step // self._update_every
        return step % self._update_every == 0 and num_passed >= self._stretch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time of saving, which is neither training nor measuring."""
        stopped = self.clock()
        yield
        self._began += self.clock() - stopped

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Time a measurement, and leave it out of the time of the steps."""
        started = self.clock()
        yield
        self._measuring_seconds = self.clock() - started
        self._began += self._measuring_seconds

    def needed_stretch(self, step: int) -> int:
        """Return by how many intervals the next measurement should wait, from the clock; rank 0 only.

        With M the seconds of the last measurement and T those of training for `update_every` steps, a stretch of n
        spends M / (M + n T) of the time on measuring, which is at most the share s for n >= M (1 - s) / (s T).

        Example: M = 1, T = 10, s = 0.02: n >= 4.9, so 5 intervals.
        """
        num_steps, seconds = step - self._first_step, self.clock() - self._began
        if self._max_share is None:
            return 1
        if num_steps < 1 or seconds <= 0:
            return self._stretch
        interval_seconds = seconds / num_steps * self._update_every
        needed = self._measuring_seconds * (1 - self._max_share) / (self._max_share * interval_seconds)
        if needed > self._stretch:
            return math.ceil(needed)
        if needed > self._stretch / 2:
            return self._stretch
        return min(self._stretch, max(1, math.ceil(_HEADROOM * needed)))

    def follow(self, decision: Decision) -> None:
        """Read from a decision when the next measurement is due; a change is logged."""
        stretch = Inputs.from_dict(decision.inputs).interval_stretch
        if stretch != self._stretch:
            every = stretch * self._update_every
            logger.info(
                "from now on losses are measured every %d steps, %d x mixture.update_every: measuring took %.1f s, "
                "validation.max_share is %s", every, stretch, self._measuring_seconds, self._max_share,
            )  # fmt: skip
        self._stretch, self._last_step = stretch, decision.decided_at_step
        self.begin_steps(decision.decided_at_step)

    def state_dict(self) -> dict[str, Any]:
        """Return JSON-able state, the same on every rank."""
        return {"stretch": self._stretch, "last_step": self._last_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load saved state."""
        self._stretch, self._last_step = state["stretch"], state["last_step"]
