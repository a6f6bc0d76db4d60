"""Let a run stop in good order when the scheduler, or a user, asks for it.

The one idea: a signal only sets a flag; after every optimizer step all ranks ask whether any of them has it set, so
all save and leave at the same step. The same signal again leaves at once; the last whole checkpoint stands. Another
one changes nothing: Ctrl-C reaches the ranks as SIGINT, and then again as SIGTERM from the deepspeed launcher.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

from versatune_ds.distributed import any_rank

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopSignals:
    """Listen for SIGTERM, SIGUSR1 and SIGINT on this process."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def install(self) -> None:
        """Start listening; only the main thread may."""
        for number in _SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal, leave when the same one comes again."""
        if self.received == number:
            os._exit(128 + number)
        self.received = self.received or signal.Signals(number)

    def ignore(self) -> None:
        """Stop listening once all is saved: the deepspeed launcher signals the ranks that leave last."""
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def agreed(self) -> bool:
        """Return whether any rank was signalled; the same answer on all. Communication: one all-reduce of a flag."""
        return any_rank(self.received is not None)
