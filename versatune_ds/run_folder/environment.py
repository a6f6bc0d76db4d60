"""Describe the environment of a run: versions, commit, launcher, devices."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from versatune_ds.distributed import World

_LIBRARIES = ("torch", "deepspeed", "transformers", "datasets", "numpy", "versatune_ds")


def describe_environment(world: World) -> dict[str, Any]:
    """Return what a result depends on besides the recipe: versions, commit, devices; no secret, no user name."""
    return {
        "versions": {name: _version(name) for name in _LIBRARIES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "commit": _commit(),
        "world_size": world.world_size,
        "launcher": world.launcher,
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or ["cpu"],
    }


def _version(library: str) -> str | None:
    """Return an installed library's version."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of this source tree, None outside a git checkout."""
    source = Path(__file__).resolve().parent
    try:
        result = subprocess.run(["git", "-C", source, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
