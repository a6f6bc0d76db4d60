"""Run a stage of a comparison's starting point, a `versatune` command, as a process that ends with the comparison."""

from __future__ import annotations

import contextlib
import logging
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from versatune_ds.comparison.stage_times import record_stage
from versatune_ds.exit_codes import USER_ERROR_EXIT_CODE
from versatune_ds.launch.time_budget import OutOfTimeError, TimeBudget

logger = logging.getLogger(__name__)

_SECONDS_TO_END = 60.0
"""For a stage that was interrupted: its ranks finish a step and save."""


def run_stage(folder: Path, command: str, *arguments: object, budget: TimeBudget) -> None:
    """Run a `versatune` command with a log in the folder.

    Raises:
        ValueError: If it finds a mistake of the user's, in its own words.
        RuntimeError: If it fails otherwise, with the end of its log.
        OutOfTimeError: If the budget is over before or while it runs; what it had saved is used by a later call.
    """
    budget.check(f"versatune {command}")
    parts = [command, *map(str, arguments)]
    logger.info("versatune %s", shlex.join(parts))
    log, began = folder / f"{command}.log", time.monotonic()
    words = [sys.executable, "-m", "versatune_ds.cli", *parts]
    with log.open("ab") as stream:
        process = subprocess.Popen(words, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL)
        code = wait_for(process, budget=budget)
    record_stage(folder, command, seconds=time.monotonic() - began)
    if code == 0:
        return
    if budget.is_over():
        raise OutOfTimeError(f"versatune {command}")
    written = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    end = written[-1] if written else "it wrote nothing"
    if code == USER_ERROR_EXIT_CODE:
        raise ValueError(end.removeprefix("versatune: "))
    raise RuntimeError(f"versatune {command} failed ({code}); {log} ends: {end}")


def wait_for(process: subprocess.Popen[bytes], *, budget: TimeBudget) -> int:
    """Wait for a stage and return its exit code; at the end of the time it is asked to stop, then killed.

    SIGTERM is passed on, since a batch system sends it to this process alone, and the stage's ranks are in sessions of
    their own. The terminal's Ctrl-C reaches the stage without help.
    """
    with _passed_on(process):
        try:
            for seconds_left, end in (
                (budget.seconds_to_stop, process.terminate),
                (budget.seconds_to_kill, process.kill),
            ):
                try:
                    return process.wait(seconds_left())
                except subprocess.TimeoutExpired:
                    end()
            return process.wait()
        except BaseException:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_SECONDS_TO_END)
            process.kill()
            raise


@contextlib.contextmanager
def _passed_on(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Pass SIGTERM on to a process, and then leave with the code that a shell gives for it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def pass_on(number: int, frame: Any) -> None:
        process.send_signal(number)
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
