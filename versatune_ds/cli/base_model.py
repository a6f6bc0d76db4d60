"""Subcommands that measure the base model before a run: detect and reference."""

from __future__ import annotations

import argparse

from versatune_ds.cli.arguments import (
    Commands,
    add_recipe_command,
    comma_separated,
    path_argument,
    path_or_name,
    write,
)
from versatune_ds.paths import check_replaceable


def add_detect(commands: Commands) -> None:
    """Add `versatune detect`."""
    command = add_recipe_command(
        commands,
        "detect",
        "Estimate the share of each domain in the text that the base model generates, and write it as prior.json.",
        example="versatune detect recipes/detect.yaml --processes 2 detect.num_sequences=2000",
    )
    command.add_argument(
        "--processes", type=int, metavar="N", help="processes that generate (default: one per GPU, or 1 without a GPU)"
    )
    command.add_argument(
        "--output", type=path_argument, metavar="FILE",
        help="prior.json to write, with a chart beside it (default: the recipe's mixture.prior, else "
        "runs/NAME-prior.json)",
    )  # fmt: skip
    command.set_defaults(run=_detect)


def _detect(parsed: argparse.Namespace) -> int:
    from versatune_ds.knowledge.detect_recipe import detect_recipe

    check_replaceable(parsed.output, mark='"weights"')
    write(detect_recipe(parsed.recipe, parsed.overrides, processes=parsed.processes, output=parsed.output))
    return 0


def add_reference(commands: Commands) -> None:
    """Add `versatune reference`."""
    help_text = "Measure each domain's reference loss: fine-tune on the domain alone, or score a given model."
    command = add_recipe_command(
        commands,
        "reference",
        help_text,
        example="versatune reference recipes/quickstart.yaml --processes 2 reference.steps=120",
    )
    command.add_argument(
        "--score",
        type=path_or_name,
        metavar="MODEL",
        help="use the losses of this model (folder or Hub name), without training",
    )
    command.add_argument(
        "--domains",
        type=comma_separated,
        metavar="A,B",
        help="measure only these domains; the others keep their losses",
    )
    command.add_argument(
        "--output",
        type=path_argument,
        metavar="FILE",
        help="reference.json to write (default: the recipe's mixture.reference, else runs/NAME-reference.json)",
    )
    command.add_argument("--fresh", action="store_true", help="measure again what has been measured already")
    command.add_argument(
        "--processes", type=int, metavar="N", help="processes to start (default: one per GPU, or 1 without a GPU)"
    )
    command.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)  # launcher/reference.py adds it
    command.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    command.set_defaults(run=_reference)


def _reference(parsed: argparse.Namespace) -> int:
    from versatune_ds.reference.command import ReferenceTask, launch_reference

    check_replaceable(parsed.output, mark='"losses"')
    task = ReferenceTask(domains=parsed.domains, scored_model=parsed.score, output=parsed.output, is_fresh=parsed.fresh)
    if parsed.worker:
        from versatune_ds.reference.measure import run_reference_worker

        return run_reference_worker(parsed.recipe, parsed.overrides, task=task, is_quiet=parsed.quiet)
    return launch_reference(
        parsed.recipe, parsed.overrides, processes=parsed.processes, task=task, is_quiet=parsed.quiet
    )
