"""Wire the subcommand that checks a recipe before nodes are taken."""

from __future__ import annotations

import argparse
import os
import sys

from versatune_ds.cli.arguments import Commands, add_recipe_command, write


def add_check(commands: Commands) -> None:
    """Add `versatune check`."""
    help_text = "Find out, without taking a node, whether a recipe would run: files, rows, batches, memory, disk, ..."
    command = add_recipe_command(
        commands,
        "check",
        help_text,
        example="versatune check recipes/quickstart.yaml --nodes 2 --gpus-per-node 4 --gpu-memory 80",
    )
    command.add_argument("--nodes", type=int, metavar="N", help="machines of the run (default: 1)")
    command.add_argument(
        "--gpus-per-node", type=int, metavar="M", help="processes a machine (default: this machine's GPUs, or 1)"
    )
    command.add_argument("--gpu-memory", type=float, metavar="GIB", help="memory of one GPU (default: this machine's)")
    command.add_argument("--json", action="store_true", help="write one JSON object instead of a table")
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
