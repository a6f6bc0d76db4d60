"""Start the processes of `versatune reference` on this machine, after the checks that need none of them."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import torch

from versatune_ds.config import load_config
from versatune_ds.training.ds_checks import check_deepspeed_settings
from versatune_ds.training.ds_settings import deepspeed_config
from versatune_ds.training.forward_signals import run_and_forward
from versatune_ds.training.launch import check_model_keys, check_processes, device_flag, worker_script
from versatune_ds.training.launchers import Layout, choose_launcher, launcher_command
from versatune_ds.training.reference_task import ReferenceTask

logger = logging.getLogger(__name__)


def launch_reference(
    recipe: Path, overrides: Sequence[str], *, processes: int | None, task: ReferenceTask, is_quiet: bool
) -> int:
    """Check the recipe, start the processes that measure its references, and return the launcher's exit code.

    Args:
        recipe: YAML file.
        overrides: `key=value` texts.
        processes: Number of processes; None means one per GPU, or 1 without a GPU.
        task: What is asked for; the started processes are asked for the same.
        is_quiet: Whether only warnings are shown.

    Raises:
        ValueError: If the recipe or the number of processes is wrong, before any process is started.
    """
    config = load_config(recipe, overrides)
    num_gpus = 0 if os.environ.get("DS_ACCELERATOR") == "cpu" else torch.cuda.device_count()
    device_type = "cuda" if num_gpus else "cpu"
    layout = Layout(processes=check_processes(processes, num_gpus=num_gpus), nodes=1)
    ds_config = deepspeed_config(config.train, world_size=layout.processes)
    check_deepspeed_settings(config.train, ds_config, device_type=device_type)
    check_model_keys(config.reference.model or config.model)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "") if num_gpus else ""
    devices = device_flag(layout.processes, cuda_visible_devices=visible)
    launcher = choose_launcher(None, environ=os.environ)
    command = launcher_command(launcher, layout, hostfile=None, devices=devices)
    command += [str(worker_script("reference.py")), str(recipe), *overrides, *task.flags(), *["--quiet"] * is_quiet]
    logger.info("starting: %s", shlex.join(command))
    os.environ.setdefault("DS_ACCELERATOR", device_type)
    return run_and_forward(command, is_forwarding=launcher in ("mpirun", "srun"))
