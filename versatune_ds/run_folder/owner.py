"""Name the process that owns a folder, and tell whether it still runs."""

from __future__ import annotations

import datetime
import json
import os
import socket
from dataclasses import asdict, dataclass, fields
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_DEAD_STATES = ("Z", "X", "x")
"""States of a process that has ended and is not collected yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """A process, named so that no other one is ever taken for it."""

    host: str
    pid: int
    since: str
    """When it took the folder, in UTC."""
    process_start: int | None
    """When it was started, in clock ticks since the machine was; None where there is no /proc."""
    boot_id: str | None
    """Of the running kernel: another one after the machine was started again."""
    pid_namespace: str | None
    """Pids mean something in here only; containers of one machine have one each."""
    slurm_job_id: str | None
    slurm_restart_count: int = 0

    def __str__(self) -> str:
        """Return it as messages name it."""
        job = f" (Slurm job {self.slurm_job_id})" if self.slurm_job_id else ""
        return f"pid {self.pid} on {self.host}{job} since {self.since} UTC"

    @property
    def is_on_this_machine(self) -> bool:
        """Return whether its pid can be looked up here."""
        here = this_process()
        return (self.host, self.boot_id, self.pid_namespace) == (here.host, here.boot_id, here.pid_namespace)

    @property
    def way_to_stop(self) -> str:
        """Return the command that ends it."""
        if self.slurm_job_id:
            return f"scancel {self.slurm_job_id}"
        return f"kill {self.pid}" if self.is_on_this_machine else f"kill {self.pid} on {self.host}"

    def is_same_process(self, other: Owner) -> bool:
        """Return whether both are one process, whenever it was asked."""
        names = ("host", "boot_id", "pid_namespace", "pid", "process_start")
        return all(getattr(self, name) == getattr(other, name) for name in names)

    def is_running(self) -> bool:
        """Return whether it still runs; asked of a process of this machine."""
        if self.process_start is not None:
            return process_start_of(self.pid) == self.process_start
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True

    def is_former_start_of(self, other: Owner) -> bool:
        """Return whether it belongs to an earlier start of the other's Slurm job, which Slurm ends before a requeue."""
        is_same_job = self.slurm_job_id is not None and self.slurm_job_id == other.slurm_job_id
        return is_same_job and self.slurm_restart_count < other.slurm_restart_count

    def to_json(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Owner:
        """Read what `to_json` wrote, by this version or a later one.

        Raises:
            ValueError: If it is not of that form.
        """
        values = json.loads(text)
        try:
            return cls(**{field.name: values[field.name] for field in fields(cls)})
        except (KeyError, TypeError) as error:
            raise ValueError(f"no owner: {text!r}") from error


def this_process() -> Owner:
    """Return this process as an owner from now on."""
    restarts = os.environ.get("SLURM_RESTART_COUNT", "")
    return Owner(
        host=socket.gethostname(),
        pid=os.getpid(),
        since=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S"),
        process_start=process_start_of(os.getpid()),
        boot_id=_read(_BOOT_ID),
        pid_namespace=_namespace(),
        slurm_job_id=os.environ.get("SLURM_JOB_ID") or None,
        slurm_restart_count=int(restarts) if restarts.isdigit() else 0,
    )


def process_start_of(pid: int) -> int | None:
    """Return when a process was started, in clock ticks since the machine was; None if it has ended, or unknown."""
    text = _read(Path(f"/proc/{pid}/stat"))
    if text is None:
        return None
    state, *numbers = text.rpartition(")")[2].split()  # the program's name, in brackets, may hold anything
    return None if state in _DEAD_STATES else int(numbers[18])


def _namespace() -> str | None:
    """Return the namespace of this process's pids, None where there is no /proc."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _read(path: Path) -> str | None:
    """Return a small file's text, None where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
