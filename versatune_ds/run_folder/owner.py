"""Identify the process that uses a folder, and find out whether it still runs."""

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
    """A process, described so that no other one is mistaken for it."""

    host: str
    pid: int
    since: str
    """When it locked the folder, in UTC."""
    process_start: int | None
    """When it was started, in clock ticks since the machine booted; None where there is no /proc."""
    boot_id: str | None
    """Of the running kernel; it changes when the machine boots."""
    pid_namespace: str | None
    """Where its pid is valid; the containers of one machine have one each."""
    slurm_job_id: str | None
    slurm_restart_count: int = 0

    def __str__(self) -> str:
        """Describe it for messages."""
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
        """Return whether both are the same process; `since` may differ."""
        names = ("host", "boot_id", "pid_namespace", "pid", "process_start")
        return all(getattr(self, name) == getattr(other, name) for name in names)

    def is_running(self) -> bool:
        """Return whether it still runs; only for a process of this machine."""
        if self.process_start is not None:
            return process_start_of(self.pid) == self.process_start
        return is_pid_taken(self.pid)

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
            raise ValueError(f"not the record of an owner: {text!r}") from error


def this_process() -> Owner:
    """Return a description of this process, as an owner from now on."""
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


def is_pid_taken(pid: int) -> bool:
    """Return whether a process of this machine has a pid."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def process_start_of(pid: int) -> int | None:
    """Return when a process was started, in clock ticks since the machine booted; None if it has ended, or unknown."""
    text = _read(Path(f"/proc/{pid}/stat"))
    if text is None:
        return None
    state, *numbers = text.rpartition(")")[2].split()  # the program's name, in brackets, may contain anything
    return None if state in _DEAD_STATES else int(numbers[18])


def lock_path(real: Path) -> Path:
    """Return the file that is locked for a folder (without links)."""
    return real.parent / ".locks" / f"{real.name}.lock"


def record_path(real: Path) -> Path:
    """Return the file that describes a folder's owner."""
    return real.parent / ".locks" / f"{real.name}.owner.json"


def read_owner(real: Path) -> Owner | None:
    """Return a folder's owner on record, None without a record or where it is incomplete."""
    try:
        return Owner.from_json(record_path(real).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def seconds_of_silence(real: Path) -> float:
    """Return how long ago the owner's record was touched, by the file server's clock: those of machines differ."""
    try:
        probe = lock_path(real)
        os.utime(probe)
        with probe.open("rb") as now, record_path(real).open("rb") as beat:  # NFS asks the server at an open
            return os.fstat(now.fileno()).st_mtime - os.fstat(beat.fileno()).st_mtime
    except OSError:
        return 0.0


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
