"""Subcommands about data: prepare and inspect."""

from __future__ import annotations

import argparse

from versatune_ds.cli.arguments import Commands, add_recipe_command, path_argument, write


def add_prepare(commands: Commands) -> None:
    """Add `versatune prepare`."""
    command = add_recipe_command(
        commands,
        "prepare",
        "Tokenise a recipe's data and print the counts of each domain.",
        example="versatune prepare recipes/six_domains.yaml data.folder=my_data",
    )
    command.set_defaults(run=_prepare)


def _prepare(parsed: argparse.Namespace) -> int:
    from versatune_ds.config import load_config
    from versatune_ds.training.prepared_data import prepare_recipe

    prepare_recipe(load_config(parsed.recipe, parsed.overrides))
    return 0


def add_inspect(commands: Commands) -> None:
    """Add `versatune inspect`."""
    help_text = "Print the packed rows that training reads, as JSON lines or as text."
    command = add_recipe_command(
        commands,
        "inspect",
        help_text,
        example="versatune inspect recipes/quickstart.yaml --steps 0:20 --world-size 4",
    )
    command.add_argument(
        "--steps",
        required=True,
        metavar="AFTER:LAST",
        help="steps after AFTER up to LAST, e.g. 0:20 for the first 20 steps",
    )
    command.add_argument(
        "--world-size", type=int, metavar="N", help="also print which rank reads each row when N processes train"
    )
    command.add_argument(
        "--resume-at",
        type=int,
        metavar="S",
        help="save and restore the position in the data after step S; no row may change",
    )
    command.add_argument(
        "--run", type=path_argument, dest="run_dir", metavar="RUN",
        help="use the weights that this run decided (default: the weights of step 0 throughout)",
    )  # fmt: skip
    command.add_argument(
        "--text", action="store_true", help="print rows as the model reads them, with text without loss in brackets"
    )
    command.set_defaults(run=_inspect)


def _inspect(parsed: argparse.Namespace) -> int:
    from versatune_ds.config import load_config
    from versatune_ds.preflight.inspect_recipe import Inspection, StepRange, inspect_as_json, inspect_as_text

    inspection = Inspection(
        steps=StepRange.parse(parsed.steps),
        world_size=parsed.world_size,
        resume_at=parsed.resume_at,
        run_dir=parsed.run_dir,
    )
    show = inspect_as_text if parsed.text else inspect_as_json
    for line in show(load_config(parsed.recipe, parsed.overrides), inspection):
        write(line)
    return 0
