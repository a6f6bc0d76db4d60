"""Subcommands for Slurm: submit, and job, which the batch script runs."""

from __future__ import annotations

import argparse

from versatune_ds.cli.arguments import Commands, add_recipe_command, write


def add_submit(commands: Commands) -> None:
    """Add `versatune submit`."""
    command = add_recipe_command(
        commands,
        "submit",
        "Submit a run to Slurm; it resumes by itself after preemptions and time limits.",
        example="versatune submit recipes/quickstart.yaml --nodes 2 slurm.gpus_per_node=1 slurm.time=1:00:00",
    )
    command.add_argument("--nodes", type=int, metavar="N", help="same as slurm.nodes=N")
    command.add_argument("--array", metavar="IDS", help="same as slurm.array=IDS: one run for each index, e.g. 0-3")
    command.add_argument("--after", metavar="JOB", help="start after this job has succeeded (slurm.dependency)")
    command.add_argument("--fresh", action="store_true", help="delete the run's folder when the job first starts")
    command.add_argument("--dry-run", action="store_true", help="print the sbatch command, submit nothing")
    command.set_defaults(run=_submit)


def _submit(parsed: argparse.Namespace) -> int:
    from versatune_ds.config import load_config
    from versatune_ds.slurm.submit import submission_overrides, submit
    from versatune_ds.training.start_checks import StartCheckInput, check_start

    options = submission_overrides(nodes=parsed.nodes, array=parsed.array, after=parsed.after)
    overrides = [*parsed.overrides, *options]
    config = load_config(parsed.recipe, overrides)
    num_processes = config.slurm.nodes * config.slurm.num_processes_per_node
    check_start(StartCheckInput(config=config, stage="submit", num_processes=num_processes, is_fresh=parsed.fresh))
    write(
        submit(
            parsed.recipe,
            overrides,
            config=config,
            is_fresh=parsed.fresh,
            is_dry_run=parsed.dry_run,
            is_quiet=parsed.quiet,
        )
    )
    return 0


def add_job(commands: Commands) -> None:
    """Add `versatune job`."""
    command = add_recipe_command(
        commands,
        "job",
        "Run the batch job of a run; slurm/train.sbatch calls this inside an allocation.",
        example="sbatch --nodes 2 slurm/train.sbatch recipes/quickstart.yaml",
    )
    command.add_argument("--fresh", action="store_true", help="delete the run's folder when the job first starts")
    command.set_defaults(run=_job)


def _job(parsed: argparse.Namespace) -> int:
    from versatune_ds.slurm.job import run_job

    return run_job(parsed.recipe, parsed.overrides, is_fresh=parsed.fresh, is_quiet=parsed.quiet)
