"""Start a run's processes, here or on several machines: check what can be checked, show the launcher's command, run it.

The one idea: `versatune train` hides nothing; it prints the command it runs, which a user may run, or change, alone.
"""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from versatune_ds.config import ModelConfig, RunConfig, load_config
from versatune_ds.data.sources.domain_files import check_data_files
from versatune_ds.distributed.gpus import asks_for_gpus, check_torch_for, check_torch_sees_gpus, is_cpu_meant
from versatune_ds.engine.ds_checks import check_deepspeed_settings, check_keys, check_model_settings
from versatune_ds.engine.ds_settings import deepspeed_config
from versatune_ds.launch.forward_signals import run_and_forward
from versatune_ds.launch.launchers import (
    Layout,
    check_started_once,
    choose_launcher,
    launcher_command,
    num_nodes_given,
    read_hostfile,
)
from versatune_ds.mixture.files import check_named_files
from versatune_ds.mixture.reference import check_has_references
from versatune_ds.mixture.weights import as_weights
from versatune_ds.model.build import check_model_weights, config_from_mapping
from versatune_ds.model.named_model import check_saved_model
from versatune_ds.run_folder.folder import check_run_folder
from versatune_ds.run_folder.folder_lock import find_owner
from versatune_ds.run_folder.links import check_unlocked
from versatune_ds.training.prepared_data import cache_folder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Say how a run's processes are to be started, as `versatune train` was asked."""

    launcher: str | None = None
    """One of `launchers.LAUNCHERS`; None chooses."""
    processes: int | None = None
    """Processes on each machine; None means one per GPU, or 1 without a GPU, or what the hostfile says."""
    nodes: int | None = None
    hostfile: Path | None = None
    is_fresh: bool = False
    """Whether the run starts over."""
    is_quiet: bool = False
    """Whether only warnings are shown."""


def launch(recipe: Path, overrides: Sequence[str], *, start: Start) -> int:
    """Check the recipe, then start its processes with a launcher, and return its exit code.

    DS_ACCELERATOR=cpu in the environment means no GPU.

    Args:
        recipe: YAML file.
        overrides: `key=value` texts.
        start: What is started, and where.

    Raises:
        ValueError: If the recipe, the machines or the number of processes are wrong, before any process is started.
    """
    check_started_once(os.environ)
    config = load_config(recipe, overrides)
    check_unlocked(config.run_dir)
    num_gpus = num_visible_gpus()
    layout = _layout(start, num_gpus=num_gpus)
    launcher = choose_launcher(start.launcher, environ=os.environ, num_nodes=layout.nodes)
    is_elsewhere = bool(layout.hosts) or launcher == "srun"  # other machines see for themselves what they have
    device_type = None if is_elsewhere else "cuda" if num_gpus else "cpu"
    check_before_start(config, num_processes=layout.num_processes, device_type=device_type, is_fresh=start.is_fresh)
    flags = ["--fresh"] * start.is_fresh + ["--quiet"] * start.is_quiet
    words = [str(recipe), *overrides, *flags]
    if device_type is not None:
        os.environ.setdefault("DS_ACCELERATOR", device_type)
    return run_ranks(launcher, layout, hostfile=start.hostfile, script="train.py", words=words)


def num_visible_gpus() -> int:
    """Return the GPUs this process may use: none where DS_ACCELERATOR=cpu says so.

    Raises:
        ValueError: If there are some that torch does not see.
    """
    check_torch_sees_gpus(os.environ)
    return 0 if is_cpu_meant(os.environ) else torch.cuda.device_count()


def run_ranks(launcher: str, layout: Layout, *, hostfile: Path | None = None, script: str, words: Sequence[str]) -> int:
    """Show the launcher's command, run it to its end with signals passed on, and return its exit code.

    Args:
        launcher: One of `launchers.LAUNCHERS`.
        layout: Where processes run.
        hostfile: The file the machines came from.
        script: Name of the script in launcher/ that every process runs.
        words: Its command line.
    """
    devices = ""
    if launcher == "deepspeed" and hostfile is None:  # the others leave CUDA_VISIBLE_DEVICES to the processes
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "") if num_visible_gpus() else ""
        devices = device_flag(layout.processes, cuda_visible_devices=visible)
    command = launcher_command(launcher, layout, hostfile=hostfile, devices=devices)
    command += [str(Path(__file__).resolve().parents[2] / "launcher" / script), *words]
    logger.info("starting: %s", shlex.join(command))
    return run_and_forward(command, is_forwarding=launcher in ("mpirun", "srun"))


def _layout(start: Start, *, num_gpus: int) -> Layout:
    """Return where processes run; on machines of a hostfile, or of Slurm, GPUs are not counted here."""
    if start.hostfile is not None:
        hosts = read_hostfile(start.hostfile, nodes=start.nodes, processes=start.processes)
        return Layout(processes=start.processes or 0, hosts=hosts, nodes=len(hosts))
    if start.nodes is not None and start.nodes < 1:
        raise ValueError(f"--nodes={start.nodes}: expected 1 or more")
    num_nodes = start.nodes or num_nodes_given(os.environ)
    asked = num_gpus or None if start.processes is None else start.processes
    return Layout(processes=check_processes(asked, num_gpus=num_gpus if num_nodes == 1 else 0), nodes=num_nodes)


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
        ValueError: If batch sizes, DeepSpeed settings, the run's folder or the model's keys are wrong, or files, rows,
            references or the model's folder are missing.
    """
    ds_config = deepspeed_config(config.train, world_size=num_processes)
    check_model_settings(config.model, ds_config)
    if device_type is None:
        check_keys(ds_config)
    else:
        check_deepspeed_settings(config.train, ds_config, device_type=device_type)
    check_named_files(config.mixture)
    check_run_folder(config, is_fresh=is_fresh)
    if isinstance(config.mixture.prior, dict):
        as_weights(list(config.mixture.prior.values()), "mixture.prior")
    check_has_references(config.mixture)
    check_model_keys(config.model)
    if config.slurm.dependency is None:  # the job before this one may make both
        check_saved_model(config.model)
        check_model_weights(config.model)
        check_data_files(config.data, cache_dir=cache_folder(config))


def check_submission(config: RunConfig) -> None:
    """Check what only a job needs; a run that still goes on in its folder is logged, since it may end before the job.

    Raises:
        ValueError: If the job asks for GPUs and this torch cannot use any.
    """
    asked = asks_for_gpus(config.slurm, os.environ)
    if asked is not None:
        check_torch_for(asked, os.environ)
    owner = find_owner(config.run_dir)
    if owner is not None and config.slurm.dependency is None and config.slurm.array is None:
        logger.warning("%s: in use by %s; the job is refused if that still runs when it starts", config.run_dir, owner)


def check_model_keys(model: ModelConfig) -> None:
    """Raise ValueError naming the first key of `model.from_config` that its model type does not know."""
    if model.from_config is not None:
        config_from_mapping(model.from_config, vocab_size=model.tokenizer_vocab_size, special_ids={})


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
            "takes; name the GPUs by number, or use --launcher torchrun"
        )
    return f"--include=localhost:{','.join(names)}"
