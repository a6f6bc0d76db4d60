"""Build the command of each launcher: deepspeed, torchrun, mpirun and srun, on this machine or on several.

The command is one that a user could have typed. Where a launcher cannot do what is requested, that is an error; no
other launcher is used instead.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from versatune_ds.distributed import free_port
from versatune_ds.distributed.world import is_slurm_task
from versatune_ds.slurm.steps import SRUN, overlap


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Where processes run: how many on each machine, and on which machines."""

    processes: int
    """Processes on each machine."""
    hosts: dict[str, int] = field(default_factory=dict)
    """Machines of the hostfile, with the processes of each; empty for this machine alone, and under srun."""
    nodes: int = 1

    @property
    def num_processes(self) -> int:
        """Return the processes on all machines together."""
        return sum(self.hosts.values()) or self.processes * self.nodes


def read_hostfile(path: Path, *, nodes: int | None, processes: int | None) -> dict[str, int]:
    """Return the machines of a hostfile, `NAME slots=N` a line, as the deepspeed launcher reads it.

    Only the first `nodes` machines are used, and at most `processes` slots of each.

    Raises:
        ValueError: If the file is missing, a line is not of that form, or there are fewer machines than requested.
    """
    if not path.is_file():
        raise ValueError(f"--hostfile={path}: no such file")
    hosts: dict[str, int] = {}
    for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        words = line.split("#")[0].split()
        if not words:
            continue
        name = words[0]
        slots = words[1].removeprefix("slots=") if len(words) == 2 else ""
        if not slots.isdigit() or int(slots) < 1 or name in hosts:
            raise ValueError(f"{path}:{i}: {line.strip()!r}: expected a machine, once, as in: node1 slots=8")
        hosts[name] = min(int(slots), processes or int(slots))
    if len(hosts) < (nodes or 1):
        raise ValueError(f"{path}: lists {len(hosts)} machines, expected {nodes or 1} or more")
    return dict(list(hosts.items())[:nodes])


def choose_launcher(requested: str | None, *, environ: Mapping[str, str], num_nodes: int = 1) -> str:
    """Return the requested launcher; else srun inside an allocation of Slurm, and deepspeed everywhere else.

    In a shell that srun started (`srun --pty bash`) the deepspeed launcher starts processes on this machine: srun can
    start no more there than the step has tasks and cores for.
    """
    if requested is not None:
        return requested
    is_here = is_slurm_task(environ) and num_nodes == 1
    return "srun" if "SLURM_JOB_ID" in environ and not is_here else "deepspeed"


def check_allocation(environ: Mapping[str, str]) -> None:
    """Check that Slurm knows the job whose variables are in the environment: a shell may have them from elsewhere.

    Without `scontrol` on the PATH nothing is checked.

    Raises:
        ValueError: If it does not; the message names the variable and both ways out.
    """
    job_id, scontrol = environ.get("SLURM_JOB_ID", ""), shutil.which("scontrol")
    if scontrol is None:
        return
    try:
        shown = subprocess.run([scontrol, "show", "job", job_id], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return
    if shown.returncode != 0:
        reason = (shown.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ValueError(
            f"SLURM_JOB_ID={job_id}: Slurm shows no such job ({reason}); unset the SLURM_ variables if this shell is "
            "not in a job, or choose the launcher yourself, as in --launcher deepspeed"
        )


def num_nodes_given(environ: Mapping[str, str]) -> int:
    """Return the machines that Slurm gave the step, else the job, that this process is in; 1 outside of Slurm."""
    name = "SLURM_STEP_NUM_NODES" if is_slurm_task(environ) else "SLURM_JOB_NUM_NODES"
    return int(environ.get(name) or environ.get("SLURM_JOB_NUM_NODES") or "1")


def launcher_command(launcher: str, layout: Layout, *, hostfile: Path | None, devices: str) -> list[str]:
    """Return the command up to the script that every process runs.

    `devices` is what `device_flag` returned, for the deepspeed launcher on this machine.

    Raises:
        ValueError: If the launcher cannot start processes there.
    """
    if hostfile is None and layout.nodes > 1 and launcher != "srun":
        raise ValueError(f"--nodes={layout.nodes}: {launcher} needs --hostfile to know the machines")
    if launcher == "deepspeed":
        return _deepspeed(layout, hostfile=hostfile, devices=devices)
    if launcher == "torchrun":
        if hostfile is not None:
            raise ValueError(
                "--hostfile: torchrun reads none; take --launcher deepspeed, or start torchrun on each machine yourself"
            )
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={layout.processes}"]
    if launcher == "mpirun":
        places = ",".join(f"{name}:{num_processes}" for name, num_processes in layout.hosts.items())
        where = ["-host", places] if places else []
        return [_beside_python("mpirun"), "-n", str(layout.num_processes), *where, sys.executable]
    if hostfile is not None:
        raise ValueError("--hostfile: srun reads none; Slurm chooses the machines, --nodes sets how many")
    tasks = [f"--nodes={layout.nodes}", f"--ntasks={layout.num_processes}", f"--ntasks-per-node={layout.processes}"]
    return [*SRUN, *overlap(os.environ), *tasks, sys.executable]


def _deepspeed(layout: Layout, *, hostfile: Path | None, devices: str) -> list[str]:
    """Return the deepspeed launcher's command for this machine, or for those of a hostfile over ssh."""
    # deepspeed's own default, 29500, is the same for every run: a second one on this machine would not start.
    end = [f"--master_port={free_port()}", "--log_level=critical"]
    if hostfile is None:
        return [_beside_python("deepspeed"), devices, *end]
    where = [f"--hostfile={hostfile}", f"--num_nodes={len(layout.hosts)}"]
    if layout.processes:
        where.append(f"--num_gpus={layout.processes}")
    return [_beside_python("deepspeed"), *where, *end]


def _beside_python(name: str) -> str:
    """Return the path of a program beside this Python, whose folder may not be on the PATH; else its name."""
    program = Path(sys.executable).with_name(name)
    return str(program) if os.access(program, os.X_OK) else name
