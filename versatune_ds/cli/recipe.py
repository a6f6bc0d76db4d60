"""Subcommands about a recipe: check and keys."""

from __future__ import annotations

import argparse
import os
import sys

from versatune_ds.cli.arguments import Commands, add_command, add_recipe_command, write


def add_check(commands: Commands) -> None:
    """Add `versatune check`."""
    help_text = "Check that a recipe would run, without starting it: files, examples, batches, memory, disk, ..."
    command = add_recipe_command(
        commands,
        "check",
        help_text,
        example="versatune check recipes/quickstart.yaml --nodes 2 --gpus-per-node 4 --gpu-memory 80",
    )
    command.add_argument("--nodes", type=int, metavar="N", help="number of machines (default: 1)")
    command.add_argument(
        "--gpus-per-node",
        type=int,
        metavar="M",
        help="processes per machine (default: one per GPU here, or 1 without a GPU)",
    )
    command.add_argument(
        "--gpu-memory", type=float, metavar="GIB", help="memory of one GPU in GiB (default: this machine's)"
    )
    command.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    command.set_defaults(run=_check)


def _check(parsed: argparse.Namespace) -> int:
    from versatune_ds.config import load_config
    from versatune_ds.preflight import CheckRequest, check_recipe

    request = CheckRequest(
        nodes=parsed.nodes,
        gpus_per_node=parsed.gpus_per_node,
        gpu_memory_gib=parsed.gpu_memory,
        environ=os.environ,
    )
    report = check_recipe(load_config(parsed.recipe, parsed.overrides), request)
    is_coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    write(report.as_json() if parsed.json else report.as_text(is_coloured=is_coloured))
    return report.exit_code


def add_keys(commands: Commands) -> None:
    """Add `versatune keys`."""
    help_text = "List the keys of a recipe with type, default and meaning."
    command = add_command(commands, "keys", help_text, example="versatune keys learning_rate")
    command.add_argument(
        "pattern", nargs="?", default="", help="text to find in a key's name or meaning; * matches anything"
    )
    command.add_argument("--markdown", action="store_true", help="print the content of docs/keys.md")
    command.set_defaults(run=_keys)


def _keys(parsed: argparse.Namespace) -> int:
    from versatune_ds.config.keys import keys_as_markdown, keys_as_text, recipe_keys

    keys = recipe_keys(parsed.pattern)
    if not keys:
        raise ValueError(f"{parsed.pattern!r}: no recipe key matches; `versatune keys` lists all")
    write(keys_as_markdown(keys).rstrip() if parsed.markdown else keys_as_text(keys))
    return 0
