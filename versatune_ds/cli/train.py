"""Subcommands that train: train and submit, and worker and job, which launchers and Slurm start."""

from __future__ import annotations

import argparse
import logging

from versatune_ds.cli.arguments import (
    FILE,
    NUMBER,
    Commands,
    add_command,
    add_recipe,
    check_can_write,
    check_shared_rows,
    write,
)
from versatune_ds.launch import LAUNCHERS

logger = logging.getLogger(__name__)

_CHECKPOINTS = "checkpoints of the run are kept"


def add_train(commands: Commands) -> None:
    """Add `versatune train`."""
    command = add_command(
        commands,
        "train",
        _train,
        example="versatune train recipes/quickstart.yaml --processes 2 mixture.steer.anchor=0.2 run.name=bold",
        kept=_CHECKPOINTS,
    )
    add_recipe(command)
    command.add_argument("--fresh", action="store_true", help="delete the run's folder and start over")
    command.add_argument(
        "--processes", **NUMBER, help="processes per machine (default: one per GPU, or 1 without a GPU)"
    )
    command.add_argument(
        "--launcher",
        choices=LAUNCHERS,
        help="program that starts the processes (default: srun inside a Slurm allocation, else deepspeed)",
    )
    command.add_argument(
        "--nodes", **NUMBER, help="number of machines: of the allocation, or the first N of the hostfile"
    )
    command.add_argument("--hostfile", **FILE, help="machines to start on, one `NAME slots=N` per line")


def _train(parsed: argparse.Namespace) -> int:
    """Train a model, on this machine or several; resumes the run if its folder exists."""
    if not parsed.fresh and _is_complete(parsed):
        return 0
    check_can_write(parsed)
    check_shared_rows(parsed)
    from versatune_ds.launch.start import LaunchOptions, launch

    options = LaunchOptions(
        launcher=parsed.launcher,
        processes=parsed.processes,
        nodes=parsed.nodes,
        hostfile=parsed.hostfile,
        is_fresh=parsed.fresh,
        is_quiet=parsed.quiet,
    )
    return launch(parsed.recipe, parsed.overrides, options=options)


def _is_complete(parsed: argparse.Namespace) -> bool:
    """Return whether the run is complete already, which is then logged and shown as at its end.

    Raises:
        ValueError: If the recipe is another run's than the one in its folder.
    """
    if parsed.recipe.is_fifo():
        return False
    from versatune_ds.config import load_config
    from versatune_ds.run_folder.complete_run import complete_line
    from versatune_ds.run_folder.config_changes import check_changes

    config = load_config(parsed.recipe, parsed.overrides)
    line = complete_line(config)
    if line is None:
        if config.model.gguf_file is None:  # its folder becomes model.name_or_path later
            check_changes(config)
        return False
    from versatune_ds.report.finish import show_summary

    logger.info("%s", line)
    show_summary(config.run_dir)
    return True


def add_worker(commands: Commands) -> None:
    """Add `versatune worker`."""
    command = add_command(
        commands,
        "worker",
        _worker,
        example="deepspeed --num_gpus 8 launcher/train.py recipes/quickstart.yaml",
        kept=_CHECKPOINTS,
    )
    add_recipe(command)
    command.set_defaults(check=None)  # all processes would report a mistake
    command.add_argument("--fresh", action="store_true", help="delete the run's folder and start over")
    command.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it


def _worker(parsed: argparse.Namespace) -> int:
    """Run one process of a training run; launchers start it through launcher/train.py."""
    from versatune_ds.evaluation.while_training import tasks_of
    from versatune_ds.export.run_export import export_into_run
    from versatune_ds.report.finish import show_summary
    from versatune_ds.training.worker import run_worker

    return run_worker(
        parsed.recipe,
        parsed.overrides,
        is_fresh=parsed.fresh,
        is_quiet=parsed.quiet,
        when_complete=show_summary,
        export_model=export_into_run,
        make_tasks=tasks_of,
    )


def add_submit(commands: Commands) -> None:
    """Add `versatune submit`."""
    command = add_command(
        commands,
        "submit",
        _submit,
        example="versatune submit recipes/quickstart.yaml --nodes 2 slurm.gpus_per_node=1 slurm.time=1:00:00",
    )
    add_recipe(command)
    command.add_argument("--nodes", **NUMBER, help="same as slurm.nodes=N")
    command.add_argument("--array", metavar="IDS", help="same as slurm.array=IDS: one run for each index, e.g. 0-3")
    command.add_argument("--after", metavar="JOB", help="start after this job has succeeded (slurm.dependency)")
    command.add_argument("--fresh", action="store_true", help="delete the run's folder when the job first starts")
    command.add_argument(
        "--dry-run", action="store_true", help="describe the job and print the sbatch command, submit nothing"
    )


def _submit(parsed: argparse.Namespace) -> int:
    """Submit a run to Slurm; it resumes by itself after preemptions and time limits."""
    from versatune_ds.slurm.job_summary import job_in_words
    from versatune_ds.slurm.submit import submission_overrides, submit
    from versatune_ds.training.saved_model import load_recipe
    from versatune_ds.training.start_checks import StartCheckInput, check_start

    options = submission_overrides(nodes=parsed.nodes, array=parsed.array, after=parsed.after)
    overrides = [*parsed.overrides, *options]
    config = load_recipe(parsed.recipe, overrides)
    num_processes = config.slurm.nodes * config.slurm.num_processes_per_node
    check_start(StartCheckInput(config=config, stage="submit", num_processes=num_processes, is_fresh=parsed.fresh))
    if parsed.dry_run:
        for line in job_in_words(config, is_fresh=parsed.fresh):  # to stderr: stdout has the command alone
            logger.info("%s", line)
    text = submit(
        parsed.recipe,
        overrides,
        config=config,
        is_fresh=parsed.fresh,
        is_dry_run=parsed.dry_run,
        is_quiet=parsed.quiet,
    )
    write(text)
    return 0


def add_job(commands: Commands) -> None:
    """Add `versatune job`."""
    command = add_command(commands, "job", _job, example="sbatch --nodes 2 slurm/train.sbatch recipes/quickstart.yaml")
    add_recipe(command)
    command.add_argument("--fresh", action="store_true", help="delete the run's folder when the job first starts")


def _job(parsed: argparse.Namespace) -> int:
    """Run the batch job of a run; slurm/train.sbatch calls this inside an allocation."""
    from versatune_ds.slurm.job import run_job

    return run_job(parsed.recipe, parsed.overrides, is_fresh=parsed.fresh, is_quiet=parsed.quiet)
