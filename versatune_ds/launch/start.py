"""Start a run's processes, here or on several machines: check the recipe, log the launcher's command, run it.

`versatune train` hides nothing: a user may run, or change, the command that it logs.
"""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from versatune_ds.config import RunConfig
from versatune_ds.distributed.gpus import check_torch_sees_gpus, is_cpu_meant, named_gpus
from versatune_ds.launch.forward_signals import run_and_forward
from versatune_ds.launch.launchers import (
    Layout,
    check_allocation,
    choose_launcher,
    launcher_command,
    num_nodes_given,
    read_hostfile,
)
from versatune_ds.paths import PROJECT_DIR
from versatune_ds.training.finding import Stage
from versatune_ds.training.saved_model import load_recipe
from versatune_ds.training.start_checks import StartCheckInput, check_start

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOptions:
    """How `versatune train` is asked to start a run's processes."""

    launcher: str | None = None
    """One of `LAUNCHERS`; None chooses."""
    processes: int | None = None
    """Processes on each machine; None means one per GPU, or 1 without a GPU, or what the hostfile sets."""
    nodes: int | None = None
    hostfile: Path | None = None
    is_fresh: bool = False
    """Whether the run starts over."""
    is_quiet: bool = False
    """Whether only warnings are shown."""


def launch(recipe: Path, overrides: Sequence[str], *, options: LaunchOptions) -> int:
    """Check the recipe, then start its processes with a launcher, and return its exit code.

    DS_ACCELERATOR=cpu in the environment means no GPU.

    Raises:
        ValueError: If the recipe, the machines or the number of processes are wrong, before any process is started.
    """
    # Where the processes run, and what starts them.
    config = load_recipe(recipe, overrides)
    num_gpus = num_visible_gpus()
    layout = layout_of(options, num_gpus=num_gpus)
    launcher = choose_launcher(options.launcher, environ=os.environ, num_nodes=layout.nodes)
    if launcher == "srun" and options.launcher is None:
        check_allocation(os.environ)

    # Checks, then the processes.
    device_type = "cuda" if num_gpus else "cpu"
    is_here = not layout.hosts and launcher != "srun"  # other machines see for themselves what they have
    _check(
        StartCheckInput(
            config=config,
            stage="train",
            num_processes=layout.num_processes,
            device_type=device_type if is_here else None,
            is_here=is_here,
            is_fresh=options.is_fresh,
        )
    )
    words = [str(recipe), *overrides, *process_flags(is_fresh=options.is_fresh, is_quiet=options.is_quiet)]
    return run_ranks(launcher, layout, hostfile=options.hostfile, script="train.py", words=words)


def launch_here(config: RunConfig, *, stage: Stage, processes: int | None, script: str, words: Sequence[str]) -> int:
    """Check a recipe, then start processes on this machine and return their exit code.

    Args:
        config: The recipe, as the checks see it.
        stage: Which checks are made.
        processes: Number of processes; None means one per GPU, or 1 without a GPU.
        script: Name of the script in launcher/ that every process runs.
        words: Its command line.

    Raises:
        ValueError: If the recipe or the number of processes is wrong, before any process is started.
    """
    num_gpus = num_visible_gpus()
    num_processes = check_processes(processes, num_gpus=num_gpus)
    device_type = "cuda" if num_gpus else "cpu"
    _check(
        StartCheckInput(config=config, stage=stage, num_processes=num_processes, device_type=device_type, is_here=True)
    )
    launcher = choose_launcher(None, environ=os.environ)
    if launcher == "srun":
        check_allocation(os.environ)
    return run_ranks(launcher, Layout(processes=num_processes), script=script, words=words)


def process_flags(*, is_fresh: bool, is_quiet: bool) -> list[str]:
    """Return the options that are passed on to every process."""
    given = {"--fresh": is_fresh, "--quiet": is_quiet}
    return [flag for flag, is_given in given.items() if is_given]


def _check(start: StartCheckInput) -> None:
    """Run the start checks; the processes then use the kind of device that was checked."""
    check_start(start)
    if start.device_type is not None:
        os.environ.setdefault("DS_ACCELERATOR", start.device_type)


def num_visible_gpus() -> int:
    """Return the number of GPUs this process may use: 0 if DS_ACCELERATOR=cpu.

    Raises:
        ValueError: If there are some that torch does not see.
    """
    check_torch_sees_gpus(os.environ)
    return 0 if is_cpu_meant(os.environ) else torch.cuda.device_count()


def run_ranks(launcher: str, layout: Layout, *, hostfile: Path | None = None, script: str, words: Sequence[str]) -> int:
    """Log the launcher's command, run it to its end with signals passed on, and return its exit code.

    Every process runs `script`, a file of launcher/, with `words` as its command line.
    """
    devices = ""
    if launcher == "deepspeed" and hostfile is None:  # the others leave CUDA_VISIBLE_DEVICES to the processes
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "") if num_visible_gpus() else ""
        devices = device_flag(layout.processes, cuda_visible_devices=visible)
    command = launcher_command(launcher, layout, hostfile=hostfile, devices=devices)
    command += [str(PROJECT_DIR / "launcher" / script), *words]
    logger.info("starting: %s", shlex.join(command))
    return run_and_forward(command, is_forwarding=launcher in ("mpirun", "srun"))


def layout_of(options: LaunchOptions, *, num_gpus: int) -> Layout:
    """Return where processes run; on machines of a hostfile, or of Slurm, GPUs are not counted here."""
    if options.hostfile is not None:
        hosts = read_hostfile(options.hostfile, nodes=options.nodes, processes=options.processes)
        return Layout(processes=options.processes or 0, hosts=hosts, nodes=len(hosts))
    if options.nodes is not None and options.nodes < 1:
        raise ValueError(f"--nodes={options.nodes}: expected 1 or more")
    num_nodes = options.nodes or num_nodes_given(os.environ)
    if num_nodes == 1:
        return Layout(processes=check_processes(options.processes, num_gpus=num_gpus))
    # Other machines may have more GPUs than this one, so its number is a default and not a limit.
    processes = max(num_gpus, 1) if options.processes is None else options.processes
    return Layout(processes=check_processes(processes, num_gpus=0), nodes=num_nodes)


def check_processes(processes: int | None, *, num_gpus: int) -> int:
    """Return the number of processes to start: as asked, else one per GPU, else 1.

    Raises:
        ValueError: If fewer than one is requested, or more than there are GPUs where there are any.
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
    names = named_gpus({"CUDA_VISIBLE_DEVICES": cuda_visible_devices})[:num_processes]
    if not names:
        return f"--num_gpus={num_processes}"
    if not all(name.isdigit() for name in names):
        raise ValueError(
            f"CUDA_VISIBLE_DEVICES={cuda_visible_devices}: expected numbers such as 0,1, which the deepspeed launcher "
            "takes; name the GPUs by number, or use --launcher torchrun"
        )
    return f"--include=localhost:{','.join(names)}"
