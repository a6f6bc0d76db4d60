"""Check what a run finds around it: launcher, GPUs, the loss kernels that will run, Slurm's partitions, W&B's server.

Whether there is a key for W&B is asked, never what it is, and nothing is sent.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from versatune_ds.domains import nearest_name
from versatune_ds.kernels.build import foresee_kernels
from versatune_ds.preflight.subject import Subject
from versatune_ds.text_table import counted
from versatune_ds.training.finding import Finding, fail, ok, warn

_SLURM_SECONDS = 10.0
_WANDB_SERVER = "https://api.wandb.ai"
_WANDB_SECONDS = 3.0


def check_launcher(subject: Subject) -> Iterator[Finding]:
    """Look for the launcher, and compare the GPUs of this machine with the requested ones."""
    beside = Path(sys.executable).with_name("deepspeed")
    launcher = str(beside) if beside.is_file() else shutil.which("deepspeed")
    if launcher is None:
        yield fail("launcher", "deepspeed", "not found beside python nor on PATH", "install it")
    else:
        yield ok("launcher", "deepspeed", launcher)
    asked = subject.gpus_per_node
    if subject.num_nodes == 1 and 0 < subject.num_gpus_here < asked:
        processes = counted(asked, "process", plural="processes")
        found = f"{processes} a node, but this machine has {counted(subject.num_gpus_here, 'GPU')}"
        yield warn("launcher", "--gpus-per-node", found, "fine if the run's node has more")
    else:
        yield ok("launcher", "GPUs here", str(subject.num_gpus_here or "none; the CPU is used"))


def check_kernels(subject: Subject) -> Iterator[Finding]:
    """Predict which implementation of the loss kernels the processes will load, without building anything."""
    if not subject.num_gpus_here and subject.request.gpu_memory_gib:
        found = "built at the first start by the nodes' nvcc, for their GPUs; without nvcc, PyTorch's slower code runs"
        yield ok("kernels", "cuda", found)
        return
    device_type = "cuda" if subject.num_gpus_here else "cpu"
    foreseen = foresee_kernels(device_type)
    text = foreseen.describe().partition(": ")[2]
    if foreseen.is_compiled or "VERSATUNE_KERNELS" in foreseen.reason:
        yield ok("kernels", device_type, text)
    else:
        yield warn("kernels", device_type, text, "a compiler on the nodes makes training faster")


def check_slurm(subject: Subject) -> Iterator[Finding]:
    """Look for sbatch where Slurm is requested, and for the partition among those the cluster knows."""
    key, partition = "slurm.partition", subject.config.slurm.partition
    if partition is None:
        key, partition = "SBATCH_PARTITION", subject.request.environ.get("SBATCH_PARTITION")
    has_sbatch = shutil.which("sbatch", path=subject.request.environ.get("PATH")) is not None
    is_asked_for = partition is not None or subject.num_nodes > 1
    if not is_asked_for:
        yield ok("slurm", "sbatch", "installed, but not requested" if has_sbatch else "not requested")
        return
    known = _partitions(subject) if has_sbatch else None
    if not has_sbatch:
        found = "sbatch is not on PATH, so nothing of Slurm was checked"
        yield warn("slurm", "sbatch", found, "run this check on the cluster's login node")
    elif known is None:
        yield warn("slurm", "sinfo", "Slurm's controller does not answer", "is slurmctld running?")
    elif partition is None:
        yield ok("slurm", "partitions", ", ".join(known))
    elif not set(partition.split(",")) <= set(known):
        unknown = sorted(set(partition.split(",")) - set(known))
        yield fail("slurm", key, f"no partition {unknown[0]!r}", nearest_name(unknown[0], known))
    else:
        yield ok("slurm", key, f"partition {partition} is known")


def _partitions(subject: Subject) -> list[str] | None:
    """Return the names of the cluster's partitions, None where Slurm does not answer."""
    try:
        done = subprocess.run(
            ["sinfo", "--noheader", "--format=%R"],
            capture_output=True,
            text=True,
            timeout=_SLURM_SECONDS,
            env=dict(subject.request.environ),
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return sorted(set(done.stdout.split())) if done.returncode == 0 else None


def check_wandb(subject: Subject) -> Iterator[Finding]:
    """Report where W&B's key comes from, and connect to its server; that there is a key is a start check."""
    environ, mode = subject.request.environ, subject.config.monitor.wandb.mode
    if mode != "online":
        yield ok("wandb", "monitor.wandb.mode", f"{mode}, needs no key and no network")
        return
    from versatune_ds.monitor.wandb_sink import has_key  # importing wandb takes half a second

    if environ.get("WANDB_API_KEY"):
        yield ok("wandb", "WANDB_API_KEY", "set")
    elif has_key():
        yield warn("wandb", "WANDB_API_KEY", "not set; netrc has a key", "nodes need the same home folder")
    server = urlsplit(environ.get("WANDB_BASE_URL") or _WANDB_SERVER)
    yield _connect(server.hostname or "", server.port or (80 if server.scheme == "http" else 443))


def _connect(host: str, port: int) -> Finding:
    """Open a connection and close it."""
    try:
        with socket.create_connection((host, port), timeout=_WANDB_SECONDS):
            return ok("wandb", "connection", f"{host}:{port} answers")
    except OSError as error:
        todo = "use monitor.wandb.mode=offline, or check the network of the nodes"
        return fail("wandb", "connection", f"{host}:{port} does not answer within {_WANDB_SECONDS:g} s ({error})", todo)
