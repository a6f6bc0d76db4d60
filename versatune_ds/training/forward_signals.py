"""Run a launcher as a child, and hand signals to the ranks alone.

The one idea: launchers do not survive signals well (deepspeed 0.19.8 prints a traceback at SIGINT, dies of SIGUSR1,
and the prompt returns while ranks still save). So the launcher runs in a session of its own, the terminal's Ctrl-C does
not reach it, and only the ranks are told; they save and leave, and the launcher ends with their exit code.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_RANK_MARK = b"--local_rank"
"""The argument by which the deepspeed launcher's ranks are told from the launcher."""


def run_and_forward(command: Sequence[str]) -> int:
    """Run a launcher to its end and return its exit code; SIGINT, SIGTERM and SIGUSR1 go to the ranks it started."""
    process = subprocess.Popen(command, start_new_session=True)

    def forward(number: int, frame: FrameType | None) -> None:
        ranks = rank_pids(session=process.pid)
        for pid in ranks:
            os.kill(pid, number)
        if not ranks:
            os.killpg(process.pid, signal.SIGTERM)  # nothing is training yet, so there is nothing to save

    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def rank_pids(*, session: int) -> list[int]:
    """Return the ranks among the processes of a session, from /proc; empty where there is no /proc."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            is_rank = _RANK_MARK in (folder / "cmdline").read_bytes() and os.getsid(int(folder.name)) == session
        except OSError:  # gone since it was listed
            continue
        if is_rank:
            found.append(int(folder.name))
    return found
