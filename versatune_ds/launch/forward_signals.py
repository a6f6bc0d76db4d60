"""Run a launcher as a child process, and pass signals to the ranks alone.

deepspeed's launcher and torchrun do not survive signals well: deepspeed 0.19.8 prints a traceback at SIGINT, both die
of SIGUSR1, and the prompt returns while ranks still save. So the launcher runs in a session of its own, which the
terminal's Ctrl-C does not reach, and only the ranks get the signal. They save and exit, and the launcher ends with
their exit code. mpirun and srun pass SIGUSR1 on, to other machines too, so there the launcher gets it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_RANK_MARK = b"\0LOCAL_RANK="
"""The variable that only ranks have: their launcher set it for them."""
_PORT_OPTION = "--master_port="


def run_and_forward(command: Sequence[str], *, is_forwarding: bool = False) -> int:
    """Run a launcher to its end and return its exit code; SIGINT, SIGTERM and SIGUSR1 go to the ranks it started.

    Args:
        command: The launcher's command.
        is_forwarding: Whether the launcher passes SIGUSR1 on by itself, and gets it instead of the ranks.

    Raises:
        ValueError: If the launcher is not installed.
        KeyboardInterrupt: If SIGINT ended the launcher before it had started a rank.
    """
    try:
        process = subprocess.Popen(command, start_new_session=True)
    except FileNotFoundError:
        raise ValueError(f"{command[0]}: not found beside python nor on PATH; install it") from None
    ports = [word.removeprefix(_PORT_OPTION) for word in command if word.startswith(_PORT_OPTION)]

    is_interrupted_at_start = False

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal is_interrupted_at_start
        if is_forwarding:
            process.send_signal(signal.SIGUSR1)
            return
        ranks = rank_pids(session=process.pid, port=ports[0] if ports else None)
        for pid in ranks:
            with contextlib.suppress(ProcessLookupError):  # it ended since it was found
                os.kill(pid, number)
        if not ranks and process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)  # nothing is training yet, so there is nothing to save
            is_interrupted_at_start = number == signal.SIGINT

    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        exit_code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if is_interrupted_at_start:
        raise KeyboardInterrupt
    return exit_code


def rank_pids(*, session: int, port: str | None = None) -> list[int]:
    """Return the ranks of a run on this machine, from /proc; empty where there is no /proc.

    Processes that a rank has started are excluded, though they have the rank's environment: a signal that makes the
    rank save would kill W&B's process, and the last metrics would be lost.

    Args:
        session: The session in which their launcher started them.
        port: Where all ranks of the run meet; those started over ssh are in another session. One rank that gets the
            signal is enough, since all agree on what to do.
    """
    meeting = f"\0MASTER_PORT={port}\0".encode()
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environ = b"\0" + (folder / "environ").read_bytes()
            is_ours = meeting in environ or os.getsid(int(folder.name)) == session
            if is_ours and _RANK_MARK in environ:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # gone since it was listed
            continue
    return [pid for pid, parent in parents.items() if parent not in parents]
