"""Describe an installation for a bug report: versions, GPUs, which loss kernels run, compilers, variables.

No path, host name or secret is in it, so that it can be pasted anywhere: of the environment, variables of a fixed list
only.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from importlib import metadata

import torch

from versatune_ds.distributed import World
from versatune_ds.distributed.gpus import UnseenGpusError, uses_gpus
from versatune_ds.kernels.build import foresee_kernels
from versatune_ds.run_folder.folder import describe_environment

LIBRARIES = (
    "torch", "triton", "deepspeed", "transformers", "tokenizers", "datasets", "numpy", "pydantic", "peft",
    "bitsandbytes", "liger-kernel", "gguf", "lm-eval", "mpi4py", "wandb",
)  # fmt: skip
VARIABLES = (
    "DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES", "TORCH_CUDA_ARCH_LIST", "OMP_NUM_THREADS", "HF_HUB_OFFLINE",
    "VERSATUNE_KERNELS", "VERSATUNE_LOSS_KERNEL", "VERSATUNE_TORCH", "VERSATUNE_DEBUG", "VERSATUNE_LOST_SECONDS",
)  # fmt: skip
"""Variables whose values change what happens, and are no secret."""
_NUMBER = r"(\d+(?:\.\d+)*)"
_COMPILERS = {
    "nvcc": rf"release {_NUMBER}",
    "c++": rf"\) {_NUMBER}",
    "ninja": rf"^{_NUMBER}",
    "git": rf"version {_NUMBER}",
}
"""Program to the pattern of its version in what `--version` prints."""
_SECONDS = 20.0


def describe_installation(environ: Mapping[str, str]) -> dict[str, str]:
    """Return name -> text, in the order to show."""
    known = describe_environment(World())
    cuda = torch.version.cuda or (f"ROCm {torch.version.hip}" if torch.version.hip else "none: a build for the CPU")
    return {
        "versatune_ds": _version("versatune_ds") + (f", commit {known['commit']}" if known["commit"] else ""),
        "python": known["python"],
        "platform": known["platform"],
        **{library: _version(library) for library in LIBRARIES},
        "CUDA of torch": cuda,
        "devices": _devices(known["devices"], environ),
        "loss kernels": _kernels(),
        **{program: _program_version(program) for program in _COMPILERS},
        **{name: environ[name] for name in VARIABLES if name in environ},
    }


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "not installed"


def _devices(names: list[str], environ: Mapping[str, str]) -> str:
    """Return the GPUs, or why there are none."""
    try:
        return ", ".join(names) if uses_gpus(environ) else "cpu"
    except UnseenGpusError as error:
        return f"cpu; {error.found}"


def _kernels() -> str:
    """Return which loss kernels a run would have here, without the places of files."""
    text = foresee_kernels("cuda" if torch.cuda.is_available() else "cpu").describe()
    return re.sub(r"(?<!\w)/\S*/", "", text.partition(": ")[2])


def _program_version(program: str) -> str:
    """Return the version of a program on the PATH."""
    if shutil.which(program) is None:
        return "not found"
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return "does not start"
    found = re.search(_COMPILERS[program], done.stdout)
    return found[1] if found else "installed"
