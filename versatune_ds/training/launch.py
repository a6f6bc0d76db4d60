"""Start a run's processes on this machine: check what can be checked, show the launcher's command, run it.

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

from versatune_ds.config import RunConfig, load_config
from versatune_ds.distributed import free_port
from versatune_ds.mixture.weights import as_weights
from versatune_ds.training.ds_checks import check_deepspeed_settings, check_keys
from versatune_ds.training.ds_settings import deepspeed_config
from versatune_ds.training.forward_signals import run_and_forward
from versatune_ds.training.model import config_from_mapping
from versatune_ds.training.run_folder import check_named_files, check_run_folder

logger = logging.getLogger(__name__)


def launch(recipe: Path, overrides: Sequence[str], *, processes: int | None, is_fresh: bool, is_quiet: bool) -> int:
    """Check the recipe, then start its processes with the deepspeed launcher.

    Args:
        recipe: YAML file.
        overrides: `key=value` texts.
        processes: Number of processes; None means one per GPU, or 1 without a GPU. DS_ACCELERATOR=cpu in the
            environment means no GPU.
        is_fresh: Whether the run starts over.
        is_quiet: Whether only warnings are shown.

    Raises:
        ValueError: If the recipe or the number of processes is wrong, before any process is started.
    """
    config = load_config(recipe, overrides)
    num_gpus = 0 if os.environ.get("DS_ACCELERATOR") == "cpu" else torch.cuda.device_count()
    num_processes = check_processes(processes, num_gpus=num_gpus)
    device_type = "cuda" if num_gpus else "cpu"
    check_before_start(config, num_processes=num_processes, device_type=device_type, is_fresh=is_fresh)
    flags = ["--fresh"] * is_fresh + ["--quiet"] * is_quiet
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "") if num_gpus else ""
    devices = device_flag(num_processes, cuda_visible_devices=visible)
    command = launch_command(recipe, [*overrides, *flags], devices=devices)
    logger.info("starting: %s", shlex.join(command))
    os.environ.setdefault("DS_ACCELERATOR", device_type)
    return run_and_forward(command)


def check_before_start(
    config: RunConfig, *, num_processes: int, device_type: str | None = None, is_fresh: bool
) -> None:
    """Find here, in seconds, what every process would find after a minute.

    Args:
        config: The recipe.
        num_processes: Processes that will train.
        device_type: cpu or cuda, where they will train on this machine; None where another machine will, and what
            this one can do says nothing.
        is_fresh: Whether the run starts over.

    Raises:
        ValueError: If batch sizes, DeepSpeed settings, named files, the run's folder or the model's keys are wrong.
    """
    ds_config = deepspeed_config(config.train, world_size=num_processes)
    if device_type is None:
        check_keys(ds_config)
    else:
        check_deepspeed_settings(config.train, ds_config, device_type=device_type)
    check_named_files(config)
    check_run_folder(config, is_fresh=is_fresh)
    if isinstance(config.mixture.prior, dict):
        as_weights(list(config.mixture.prior.values()), "mixture.prior")
    if config.model.from_config is not None:
        config_from_mapping(config.model.from_config, vocab_size=config.model.tokenizer_vocab_size, special_ids={})


def check_processes(processes: int | None, *, num_gpus: int) -> int:
    """Return the number of processes to start: as asked, else one per GPU, else 1.

    Raises:
        ValueError: If fewer than one is asked for, or more than there are GPUs where there are any.
    """
    if processes is None:
        return max(num_gpus, 1)
    if processes < 1 and not num_gpus:
        raise ValueError(f"--processes={processes}: expected 1 or more")
    if processes < 1 or processes > num_gpus > 0:
        raise ValueError(
            f"--processes={processes}: expected 1 to {num_gpus}, the GPUs seen on this machine; "
            "DS_ACCELERATOR=cpu trains without them"
        )
    return processes


def device_flag(num_processes: int, *, cuda_visible_devices: str) -> str:
    """Return the flag that gives the deepspeed launcher its devices.

    deepspeed 0.19.8 ignores CUDA_VISIBLE_DEVICES and deletes it when --num_gpus is given: the run would take the first
    GPUs of the machine, which may be somebody else's. --include names them; the launcher sorts them by number.

    Args:
        num_processes: Number of processes, at most the number of GPUs named.
        cuda_visible_devices: The variable's value; empty where it is not set or no GPU is used.

    Raises:
        ValueError: If GPUs are named by UUID, which the launcher cannot take.
    """
    names = [name.strip() for name in cuda_visible_devices.split(",") if name.strip()][:num_processes]
    if not names:
        return f"--num_gpus={num_processes}"
    if not all(name.isdigit() for name in names):
        raise ValueError(
            f"CUDA_VISIBLE_DEVICES={cuda_visible_devices}: expected numbers such as 0,1, which the deepspeed launcher "
            "takes; name the GPUs by number, or start launcher/train.py with torchrun"
        )
    return f"--include=localhost:{','.join(names)}"


def launch_command(recipe: Path, arguments: Sequence[str], *, devices: str) -> list[str]:
    """Return the deepspeed launcher's command for one node; `devices` is what `device_flag` returned."""
    launcher = Path(sys.executable).with_name("deepspeed")
    return [
        str(launcher) if launcher.is_file() else "deepspeed",
        devices,
        # deepspeed's own default, 29500, is the same for every run: a second one on this machine would not start.
        f"--master_port={free_port()}",
        "--log_level=critical",
        str(worker_script()),
        str(recipe),
        *arguments,
    ]


def worker_script() -> Path:
    """Return the script that every process runs."""
    return Path(__file__).resolve().parents[2] / "launcher" / "train.py"
