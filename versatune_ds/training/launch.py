"""Start a run's processes on this machine: choose the launcher, show its command, become it.

The one idea: `versatune train` hides nothing; it prints the command it runs, which a user may run, or change, alone.
"""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from versatune_ds.config import load_config
from versatune_ds.distributed import free_port

logger = logging.getLogger(__name__)


def launch(recipe: Path, overrides: Sequence[str], *, processes: int | None, is_fresh: bool, is_quiet: bool) -> int:
    """Check the recipe, then start its processes with the deepspeed launcher.

    Args:
        recipe: YAML file.
        overrides: `key=value` texts.
        processes: Number of processes; None means one per GPU, or 1 without a GPU.
        is_fresh: Whether the run starts over.
        is_quiet: Whether only warnings are shown.

    Raises:
        ValueError: If the recipe is wrong, before any process is started.
    """
    load_config(recipe, overrides)
    num_gpus = torch.cuda.device_count()
    num_processes = processes or max(num_gpus, 1)
    if num_processes < 1 or (num_gpus and num_processes > num_gpus):
        raise ValueError(f"--processes={num_processes}: expected 1 to {num_gpus} on this machine")
    flags = ["--fresh"] * is_fresh + ["--quiet"] * is_quiet
    command = launch_command(recipe, [*overrides, *flags], num_processes=num_processes)
    logger.info("starting: %s", shlex.join(command))
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if num_gpus else "cpu")
    os.execvp(command[0], command)


def launch_command(recipe: Path, arguments: Sequence[str], *, num_processes: int) -> list[str]:
    """Return the deepspeed launcher's command for one node."""
    launcher = Path(sys.executable).with_name("deepspeed")
    return [
        str(launcher) if launcher.is_file() else "deepspeed",
        f"--num_gpus={num_processes}",
        # deepspeed's own default, 29500, is the same for every run: a second one on this machine would not start.
        f"--master_port={free_port()}",
        "--log_level=error",
        str(worker_script()),
        str(recipe),
        *arguments,
    ]


def worker_script() -> Path:
    """Return the script that every process runs."""
    return Path(__file__).resolve().parents[2] / "launcher" / "train.py"
