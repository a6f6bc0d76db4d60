"""Wire the subcommands that ask what a model knows: detect."""

from __future__ import annotations

import argparse

from versatune_ds.cli.arguments import Commands, add_recipe_command, path_argument, write
from versatune_ds.paths import check_replaceable


def add_detect(commands: Commands) -> None:
    """Add `versatune detect`."""
    command = add_recipe_command(
        commands,
        "detect",
        "Find out which shares of the domains the base model writes by itself; write prior.json.",
        example="versatune detect recipes/detect.yaml --processes 2 detect.num_sequences=2000",
    )
    command.add_argument("--processes", type=int, help="processes that draw; default: one per GPU, or 1 without a GPU")
    command.add_argument(
        "--output", type=path_argument, metavar="FILE",
        help="prior.json to write, a chart beside it; default: where mixture.prior looks, else runs/NAME-prior.json",
    )  # fmt: skip
    command.set_defaults(run=_detect)


def _detect(parsed: argparse.Namespace) -> int:
    from versatune_ds.knowledge.detect_recipe import detect_recipe

    check_replaceable(parsed.output, mark='"weights"')
    write(detect_recipe(parsed.recipe, parsed.overrides, processes=parsed.processes, output=parsed.output))
    return 0
