"""Refuse to train on the CPU where there is a GPU: a torch wheel without CUDA silently sees none.

Where no GPU exists and none was allocated, the CPU is right, whatever a launcher's options are called
(`deepspeed --num_gpus 2`). DS_ACCELERATOR=cpu chooses the CPU, and so does hiding the GPUs
(CUDA_VISIBLE_DEVICES empty or -1).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence

import torch

from versatune_ds.config import SlurmConfig
from versatune_ds.log import first_line

_ALLOCATED = ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE")
"""Variables of a job or step that was given GPUs of its node."""
_SBATCH_VARIABLES = ("SBATCH_GPUS", "SBATCH_GPUS_PER_NODE", "SBATCH_GPUS_PER_TASK", "SBATCH_GRES")
_ASKS_FOR_GPUS = re.compile(r"--(gpus|gpus-per-(node|task|socket))=|--(gres|tres-per-(node|task|job|socket))=.*\bgpu\b")
_SECONDS = 20.0


class UnseenGpusError(ValueError):
    """Torch sees no GPU although there are some, or some are requested: what was found, and what to do."""

    def __init__(self, found: str, todo: str) -> None:
        super().__init__(found, todo)  # all arguments, since the processes of a pool pickle their errors
        self.found, self.todo = found, todo

    def __str__(self) -> str:
        return f"{self.found}; {self.todo}"


def check_torch_sees_gpus(environ: Mapping[str, str]) -> None:
    """Check that torch sees GPUs where this process has some.

    Raises:
        UnseenGpusError: In one line: which GPUs there are, why torch sees none, what to do.
    """
    if is_cpu_meant(environ) or torch.cuda.device_count() > 0:
        return
    found = gpus_here(environ)
    if found is not None:
        raise _unseen_gpus(found)


def check_torch_for(requested_by: str, environ: Mapping[str, str]) -> None:
    """Check that this torch could use the GPUs that a job requests by a key or option, on this machine or another.

    Raises:
        UnseenGpusError: If torch is built without CUDA, unless DS_ACCELERATOR=cpu is set.
    """
    if not is_cpu_meant(environ) and not has_cuda():
        raise _unseen_gpus(f"{requested_by} asks for GPUs", elsewhere=", or name the job's Python with slurm.python")


def asks_for_gpus(slurm: SlurmConfig, environ: Mapping[str, str]) -> str | None:
    """Return the key or variable by which a job is given GPUs; None where none is, or the job has another torch."""
    if slurm.has_own_torch:
        return None
    if slurm.gpus_per_node is not None:
        return f"slurm.gpus_per_node={slurm.gpus_per_node}"
    for option in slurm.sbatch_options:
        if _ASKS_FOR_GPUS.match(option):
            return f"slurm.sbatch_options: {option}"
    names = (name for name in _SBATCH_VARIABLES if "gpu" in environ.get(name, "") or environ.get(name, "").isdigit())
    return next((f"{name}={environ[name]}" for name in names), None)


def uses_gpus(environ: Mapping[str, str]) -> bool:
    """Return whether this process runs on a GPU.

    Raises:
        UnseenGpusError: If there are GPUs that torch does not see.
    """
    check_torch_sees_gpus(environ)
    return not is_cpu_meant(environ) and torch.cuda.is_available()


def named_gpus(environ: Mapping[str, str]) -> list[str]:
    """Return the names that CUDA_VISIBLE_DEVICES lists; none where it is not set."""
    return [name.strip() for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]


def is_cpu_meant(environ: Mapping[str, str]) -> bool:
    """Return whether the environment chooses the CPU on purpose."""
    return environ.get("DS_ACCELERATOR") == "cpu"


def has_cuda() -> bool:
    """Return whether torch is built for GPUs, NVIDIA's or AMD's."""
    return torch.version.cuda is not None or torch.version.hip is not None


def gpus_here(environ: Mapping[str, str]) -> str | None:
    """Return the evidence that this process has GPUs; None where it has none, or they are hidden from it."""
    if environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1", "NoDevFiles"):
        return None
    if environ.get("DS_ACCELERATOR") == "cuda":
        return "DS_ACCELERATOR=cuda asks for GPUs"
    if "SLURM_JOB_ID" in environ:
        for name in _ALLOCATED:
            if environ.get(name, "").strip() not in ("", "0"):
                return f"Slurm gave this job GPUs ({name}={environ[name]})"
    listed = _listed(environ)
    if not listed:
        return None
    return f"nvidia-smi lists {listed[0]}" + (" and others" if len(listed) > 1 else "")


def why_torch_sees_none() -> str:
    """Return why torch sees no GPU: how it is built, or CUDA's error."""
    if not has_cuda():
        return f"this torch ({torch.__version__}) is built without CUDA"
    try:
        torch.cuda.init()
        reason = "CUDA sees no device"
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
    return f"this torch ({torch.__version__}) sees no GPU ({reason})"


def _unseen_gpus(evidence: str, *, elsewhere: str = "") -> UnseenGpusError:
    """Return the error of GPUs for which there is this evidence; `elsewhere` is what to do where they are not here."""
    torch_to_install = "a torch with CUDA (VERSATUNE_TORCH=cuda bash launcher/quickstart.sh does)"
    if has_cuda():
        torch_to_install = "a torch that fits the driver"
    return UnseenGpusError(
        f"{evidence}, but {why_torch_sees_none()}: the run would train on the CPU",
        f"install {torch_to_install}{elsewhere}, or set DS_ACCELERATOR=cpu to train on the CPU on purpose",
    )


def _listed(environ: Mapping[str, str]) -> Sequence[str]:
    """Return the GPUs that nvidia-smi lists, by their numbers and models; none where it is not there or fails."""
    program = shutil.which("nvidia-smi", path=environ.get("PATH", os.defpath))
    if program is None:
        return []
    try:
        done = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    return [line.partition(" (")[0].strip() for line in lines if line.startswith("GPU ")]
