"""Wire the subcommand that measures reference losses."""

from __future__ import annotations

import argparse

from versatune_ds.cli.arguments import Commands, add_recipe_command, comma_separated, path_argument, path_or_name
from versatune_ds.paths import check_replaceable


def add_reference(commands: Commands) -> None:
    """Add `versatune reference`."""
    help_text = "Measure what each domain could reach: fine-tune on it alone, or score a given model."
    command = add_recipe_command(
        commands,
        "reference",
        help_text,
        example="versatune reference recipes/quickstart.yaml --processes 2 reference.steps=120",
    )
    command.add_argument(
        "--score", type=path_or_name, metavar="MODEL", help="take the losses of this model (folder or Hub name) instead"
    )
    command.add_argument(
        "--domains",
        type=comma_separated,
        metavar="A,B",
        help="measure these domains only; the others keep what they have",
    )
    command.add_argument(
        "--output",
        type=path_argument,
        metavar="FILE",
        help="reference.json to write; default: where mixture.reference looks, else runs/NAME-reference.json",
    )
    command.add_argument("--fresh", action="store_true", help="measure again what is measured already")
    command.add_argument("--processes", type=int, help="processes to start; default: one per GPU, or 1 without a GPU")
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
