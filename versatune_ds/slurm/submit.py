"""Submit a recipe to Slurm: its `slurm` section becomes options of sbatch, with the template of this project.

It is one command that a user may read, copy and change; `--dry-run` shows it.
"""

from __future__ import annotations

import logging
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from versatune_ds.config import RunConfig
from versatune_ds.paths import PROJECT_DIR

logger = logging.getLogger(__name__)

TEMPLATE = PROJECT_DIR / "slurm" / "train.sbatch"
_CPUS_BESIDE_A_GPU = 4
"""For the main thread, the loader's, that of the backward pass, and one to spare."""
_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_DEBUG", "SLURM_TIME_FORMAT")
"""Variables that a user sets for Slurm's programs."""


def job_folder(config: RunConfig) -> Path:
    """Return the folder of job logs and records of starts; no run can have its name.

    It is beside the runs, not in them: a run's folder is made only once its data are checked, and `--fresh` deletes it.
    """
    return config.run.output_dir / "_slurm"


def log_pattern(config: RunConfig) -> str:
    """Return the path of the job's log for sbatch: %j is the job's id, %A_%a that of an array and its task."""
    folder = str(job_folder(config)).replace("%", "%%")
    return f"{folder}/{config.run.name}-{'%A_%a' if config.slurm.array else '%j'}.log"


def submission_overrides(*, nodes: int | None, array: str | None, after: str | None) -> list[str]:
    """Return the options of `versatune submit` as overrides, so that the run's config records them."""
    given = {"nodes": nodes, "array": array, "dependency": f"afterok:{after}" if after else None}
    return [f"slurm.{key}={value}" for key, value in given.items() if value is not None]


def sbatch_options(config: RunConfig) -> list[str]:
    """Return the options of sbatch for a recipe."""
    slurm = config.slurm
    values = {
        "job-name": config.run.name,
        "output": log_pattern(config),
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "nodes": slurm.nodes,
        "ntasks-per-node": slurm.num_processes_per_node,
        "gpus-per-node": slurm.gpus_per_node,
        "cpus-per-task": cpus_per_task(config),
        "mem": slurm.node_memory,
        "time": slurm.time,
        "signal": f"B:USR1@{slurm.seconds_to_save}",
        "array": slurm.array,
        "dependency": slurm.dependency,
        "kill-on-invalid-dep": "yes" if slurm.dependency else None,
    }
    return [*(f"--{key}={value}" for key, value in values.items() if value is not None), *slurm.sbatch_options]


def cpus_per_task(config: RunConfig) -> int | None:
    """Return the cores of each process; None leaves them to the cluster.

    A cluster's own default is often one core, on which a GPU would wait for its loader. The first node must have cores
    for `data.num_processes` together: one task prepares the data there.
    """
    slurm = config.slurm
    is_set = slurm.cpus_per_task is not None or any(option.startswith("--cpus-per-") for option in slurm.sbatch_options)
    if is_set or slurm.gpus_per_node is None:
        return slurm.cpus_per_task
    return max(_CPUS_BESIDE_A_GPU, math.ceil(config.data.num_processes / slurm.num_processes_per_node))


def job_environment(config: RunConfig) -> dict[str, str]:
    """Return the variables that the job's script reads: which Python, and the set-up commands before it."""
    variables = {"VERSATUNE_PYTHON": config.slurm.python or sys.executable, "VERSATUNE_ROOT": str(PROJECT_DIR)}
    return {**variables, "VERSATUNE_SETUP": "\n".join(config.slurm.setup)} if config.slurm.setup else variables


def outside_of_jobs(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without Slurm's variables of the job, or step, in which this process runs.

    sbatch would pass them on, and the new job would mistake the old one's step, tasks and memory for its own.
    """
    if "SLURM_JOB_ID" not in environ:
        return dict(environ)
    return {name: value for name, value in environ.items() if name in _KEPT or not name.startswith("SLURM_")}


def submit(
    recipe: Path, overrides: Sequence[str], *, config: RunConfig, is_fresh: bool, is_dry_run: bool, is_quiet: bool
) -> str:
    """Submit a job and return its id, or only return the command.

    Args:
        recipe: YAML file.
        overrides: `key=value` texts, those of the options included.
        config: The config that both give.
        is_fresh: Whether the run's folder is deleted at the job's first start.
        is_dry_run: Whether nothing is submitted.
        is_quiet: Whether the run shows only warnings.

    Raises:
        ValueError: If sbatch is not found or refuses the job, with its message.
    """
    flags = [flag for flag, is_set in (("--fresh", is_fresh), ("--quiet", is_quiet)) if is_set]
    options = ["--parsable", *sbatch_options(config)]
    if config.slurm.cpus_per_task is None and cpus_per_task(config) is not None:
        logger.info("slurm.cpus_per_task is not set: asking for %d cores a process", cpus_per_task(config))
    command = ["sbatch", *options, str(TEMPLATE), str(recipe), *overrides, *flags]
    environment = job_environment(config)
    if is_dry_run:
        return shlex.join([*(["env", *(f"{key}={value}" for key, value in environment.items())]), *command])
    job_folder(config).mkdir(parents=True, exist_ok=True)  # Slurm does not make it, and there would be no log
    try:
        environ = {**outside_of_jobs(os.environ), **environment}
        done = subprocess.run(command, env=environ, capture_output=True, text=True)
    except FileNotFoundError:
        raise ValueError("sbatch: not found; submit on a machine of the cluster, or see --dry-run") from None
    if done.returncode:
        raise ValueError(f"sbatch refused the job: {' '.join(done.stderr.split())}")
    job_id = done.stdout.strip().split(";")[0]  # a cluster's name may follow
    log = log_pattern(config).replace("%j", job_id).replace("%A", job_id).replace("%a", "TASK").replace("%%", "%")
    logger.info("submitted job %s; to watch it: tail -F %s", job_id, log)
    return job_id
