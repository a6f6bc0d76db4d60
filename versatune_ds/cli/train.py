"""Subcommands that train: train, and worker, which launchers start."""

from __future__ import annotations

import argparse
from pathlib import Path

from versatune_ds.cli.arguments import Commands, add_recipe_command, path_argument
from versatune_ds.launch import LAUNCHERS


def add_train(commands: Commands) -> None:
    """Add `versatune train`."""
    command = add_recipe_command(
        commands,
        "train",
        "Train a model, on this machine or several; resumes the run if its folder exists.",
        example="versatune train recipes/quickstart.yaml --processes 2 mixture.steer.anchor=0.2 run.name=bold",
    )
    command.add_argument("--fresh", action="store_true", help="delete the run's folder and start over")
    command.add_argument(
        "--processes", type=int, metavar="N", help="processes per machine (default: one per GPU, or 1 without a GPU)"
    )
    command.add_argument(
        "--launcher", choices=LAUNCHERS,
        help="program that starts the processes (default: srun inside a Slurm allocation, else deepspeed)",
    )  # fmt: skip
    command.add_argument(
        "--nodes", type=int, metavar="N", help="number of machines: of the allocation, or the first N of the hostfile"
    )
    command.add_argument(
        "--hostfile", type=path_argument, metavar="FILE", help="machines to start on, one `NAME slots=N` per line"
    )
    command.set_defaults(run=_train)


def _train(parsed: argparse.Namespace) -> int:
    from versatune_ds.config import load_config

    load_config(parsed.recipe, parsed.overrides)  # a mistake is found before torch is imported, which takes seconds
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


def add_worker(commands: Commands) -> None:
    """Add `versatune worker`."""
    help_text = "Run one process of a training run; launchers start it through launcher/train.py."
    command = add_recipe_command(
        commands,
        "worker",
        help_text,
        example="deepspeed --num_gpus 8 launcher/train.py recipes/quickstart.yaml",
    )
    command.add_argument("--fresh", action="store_true", help="delete the run's folder and start over")
    command.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    command.set_defaults(run=_worker)


def _worker(parsed: argparse.Namespace) -> int:
    from versatune_ds.report.finish import show_summary
    from versatune_ds.training.worker import run_worker

    return run_worker(
        parsed.recipe,
        parsed.overrides,
        is_fresh=parsed.fresh,
        is_quiet=parsed.quiet,
        when_complete=show_summary,
        export_model=_export,
    )


def _export(run_dir: Path) -> Path:
    from versatune_ds.export.run_export import export_run
    from versatune_ds.run_folder.names import EXPORT_FOLDER

    return export_run(run_dir, output=run_dir / EXPORT_FOLDER)
