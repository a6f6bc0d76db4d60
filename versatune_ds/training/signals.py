"""Stop a run cleanly when the scheduler or a user sends a signal: save, then exit.

A signal only sets a flag. All ranks exchange their flags while each optimizer step runs, and read the result after it,
so all save and exit at the same step: that of the signal or, on more than one rank, the next one, whose exchange is the
first to begin after the signal. The same signal a second time exits at once, and the last complete checkpoint remains.
Another signal has no effect: Ctrl-C reaches the ranks as SIGINT, and then again as SIGTERM from the deepspeed launcher.

Before the first step there is nothing to save, so the first signal exits at once, with the exit code for a requeue.
Python runs signal handlers only between two lines of Python, and a rank that waits inside a collective would never run
them. So a thread reads the signals, from the file descriptor that the interpreter writes to immediately.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from versatune_ds.distributed.shared_flags import SharedFlags
from versatune_ds.exit_codes import REQUEUE_EXIT_CODE

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What all ranks agree on after an optimizer step. With several ranks: as of the start of the step."""

    is_stopped: bool
    """Whether a signal reached any rank."""
    is_save_due: bool
    """Whether it is time to save."""
    is_writing: bool = False
    """Whether a rank still writes a checkpoint in the background."""


class StopSignals:
    """Listen for SIGTERM, SIGUSR1 and SIGINT on this process.

    Args:
        clean_up: Of a command that never saves (`evaluate --sharded`): called before a signal ends it, with code 128 +
            the signal's number. None for a run.
    """

    def __init__(self, *, clean_up: Callable[[], None] | None = None) -> None:
        self._clean_up = clean_up
        self.received: signal.Signals | None = None
        self.has_state = False
        """Whether there is something to save: steps are taken."""
        self._is_installed = False
        self._flags = SharedFlags()

    def install(self) -> None:
        """Start listening; only the main thread may."""
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        for number in _SIGNALS:
            signal.signal(number, lambda number, frame: None)  # the thread acts; this keeps the default from acting
        signal.set_wakeup_fd(writer.fileno())
        os.register_at_fork(after_in_child=_forget)
        self._is_installed = True
        self._writer = writer  # closed with this object, and the interpreter writes to it until then
        threading.Thread(target=self._watch, args=(reader,), name="versatune-signals", daemon=True).start()

    def _watch(self, reader: socket.socket) -> None:
        """Handle signals as they arrive, one byte each."""
        while numbers := reader.recv(1):
            if numbers[0] in _SIGNALS:
                self._receive(signal.Signals(numbers[0]))

    def _receive(self, number: signal.Signals) -> None:
        """Record the first signal; exit when the same one comes again, or where there is nothing to save."""
        if self._clean_up is not None:
            _write_on_rank_zero(f"stopped by {number.name}")
            self._clean_up()
            os._exit(128 + number)
        if not self.has_state:
            _write_on_rank_zero(f"stopped by {number.name} before the first step; nothing had to be saved")
            os._exit(REQUEUE_EXIT_CODE)
        if self.received == number:
            os._exit(128 + number)
        self.received = self.received or number

    def begin_steps(self) -> None:
        """Mark that training has started: from now on a signal waits until the state is saved."""
        self.has_state = True

    def stop(self) -> None:
        """Ask for a stop as a signal does: all ranks save after the same step, this one or the next."""
        self.received = self.received or signal.SIGTERM

    def ignore(self) -> None:
        """Stop listening once all is saved: the deepspeed launcher signals the ranks that exit last."""
        for number in _SIGNALS if self._is_installed else ():
            signal.signal(number, signal.SIG_IGN)

    def ask_ranks(self, *, is_save_due: Callable[[], bool], is_writing: Callable[[], bool]) -> None:
        """Start to exchange the flags of all ranks, before an optimizer step; `agreed` has the result after it.

        Communication: one all-reduce of three flags, while the step runs.

        Args:
            is_save_due: Whether this rank's clock asks for a save; only rank 0's may, since clocks differ.
            is_writing: Whether this rank still writes a checkpoint in the background.
        """
        self._flags.start(lambda: (self.received is not None, is_save_due(), is_writing()))

    def agreed(self) -> Agreement:
        """Return whether any rank was signalled or wrote, or rank 0 wanted to save, when `ask_ranks` was called.

        A single process reads its flags now, and stops after the step in which it was signalled.
        """
        is_stopped, is_save_due, is_writing = self._flags.result()
        return Agreement(is_stopped=is_stopped, is_save_due=is_save_due, is_writing=is_writing)


def _write_on_rank_zero(text: str) -> None:
    """Write a line to stderr from a signal's thread; sys.stderr may be locked by the thread that is stopped."""
    if os.environ.get("RANK", "0") in ("", "0"):
        os.write(2, f"versatune: {text}\n".encode())


def _forget() -> None:
    """Restore the default handlers in a forked child: a process pool ends its workers by SIGTERM."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)


class SaveClock:
    """Report when the last save is too long ago, by this process's clock; never where `every_minutes` is None."""

    def __init__(self, every_minutes: float | None) -> None:
        self._seconds = None if every_minutes is None else 60 * every_minutes
        self.restart()

    def restart(self) -> None:
        """Count from now on."""
        self._saved = time.monotonic()

    def is_due(self) -> bool:
        """Return whether it is time to save."""
        return self._seconds is not None and time.monotonic() - self._saved >= self._seconds
