"""Build the srun commands of a job: number of tasks, cores of each, and the container around them.

srun starts the ranks itself. torchrun and the deepspeed launcher die of the signals that Slurm sends and leave their
ranks behind; srun passes signals on and returns the ranks' exit code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from versatune_ds.config import RunConfig
from versatune_ds.paths import PROJECT_DIR

SRUN = ("srun", "--kill-on-bad-exit=0", "--wait=60")
"""Ranks may run for a minute after the first one exits: time to exit in order, and a limit to a hang."""

_FIRST_RESERVED_STEP = 0xFFFFFFF0
"""Larger step ids are the batch script and interactive shells. As in distributed/world.py, which would import torch."""


def overlap(environ: Mapping[str, str]) -> list[str]:
    """Return the option that srun needs within a step of srun, whose resources it would otherwise wait for, for ever.

    Since Slurm 20.11. A job that was submitted from within a step has the step's id too, and the option does no harm.
    """
    step = environ.get("SLURM_STEP_ID", "")
    return ["--overlap"] if step.isdigit() and int(step) < _FIRST_RESERVED_STEP else []


def train_step(config: RunConfig, environ: Mapping[str, str], *, python: str) -> list[str]:
    """Return the command that starts every rank, up to the arguments of `launcher/train.py`.

    Raises:
        ValueError: If the job's number of tasks does not fit its GPUs.
    """
    command = [*SRUN, *overlap(environ), *_tasks(environ)]
    if "SLURM_CPUS_PER_TASK" in environ:  # since Slurm 22.05 srun does not inherit it from sbatch
        command.append(f"--cpus-per-task={environ['SLURM_CPUS_PER_TASK']}")
    return [*command, *_in_container(config, python=python), str(PROJECT_DIR / "launcher" / "train.py")]


def prepare_step(config: RunConfig, environ: Mapping[str, str], *, python: str) -> list[str]:
    """Return the command that prepares the data in one process, with all cores that the job has on its node."""
    command = ["srun", *overlap(environ), "--nodes=1", "--ntasks=1", "--ntasks-per-node=1"]
    if environ.get("SLURM_CPUS_ON_NODE", "").isdigit():
        command.append(f"--cpus-per-task={environ['SLURM_CPUS_ON_NODE']}")
    return [*command, *_in_container(config, python=python), "-m", "versatune_ds.cli", "prepare"]


def _tasks(environ: Mapping[str, str]) -> list[str]:
    """Return srun's options for the number of tasks: one for each GPU, unless sbatch was given a number.

    That number is in the environment, where srun finds it.

    Raises:
        ValueError: If there are fewer or more tasks than GPUs, unless DS_ACCELERATOR=cpu says that GPUs are not used.
    """
    num_gpus, num_tasks = environ.get("SLURM_GPUS_ON_NODE", ""), environ.get("SLURM_NTASKS", "")
    if not num_gpus.isdigit() or environ.get("DS_ACCELERATOR") == "cpu":
        return []
    num_nodes = int(environ.get("SLURM_JOB_NUM_NODES", "1"))
    if not num_tasks.isdigit():
        return [f"--ntasks={num_nodes * int(num_gpus)}", f"--ntasks-per-node={num_gpus}"]
    if int(num_tasks) != num_nodes * int(num_gpus):
        raise ValueError(
            f"SLURM_NTASKS={num_tasks}: {num_nodes} nodes with {num_gpus} GPUs each need one task a GPU; give sbatch "
            f"--ntasks-per-node={num_gpus}, or use versatune submit"
        )
    return []


def _in_container(config: RunConfig, *, python: str) -> list[str]:
    """Return the command that runs Python, in its container if there is one."""
    container = config.slurm.container
    if container is None:
        return [python]
    here, output_dir = Path.cwd(), config.run.output_dir.resolve()
    own = [f"{place}:{place}" for place in dict.fromkeys((PROJECT_DIR, here, output_dir))]
    mounts = [*own, *container.mounts]
    if container.kind == "pyxis":
        options = [f"--container-image={container.image}", f"--container-mounts={','.join(mounts)}"]
        return [*options, f"--container-workdir={here}", container.python]
    binds = [f"--bind={mount}" for mount in mounts]
    return ["apptainer", "exec", "--nv", f"--pwd={here}", *binds, container.image, container.python]
