"""Wire the subcommand that compares policies: compare."""

from __future__ import annotations

import argparse

from versatune_ds.cli.arguments import Commands, add_command, path_argument, write


def add_compare(commands: Commands) -> None:
    """Add `versatune compare`."""
    command = add_command(
        commands,
        "compare",
        "Train and evaluate several policies on one base model, over seeds, and write a page of what came out.",
        example="versatune compare recipes/compare/multi_ability.yaml seeds=[1,2,3] --jobs 2",
    )
    command.add_argument("comparison", type=path_argument, help="YAML file; see recipes/compare/")
    command.add_argument(
        "overrides", nargs="*", metavar="key=value",
        help="keys of the comparison, e.g. seeds=[1,2] or data.folder=my_data, or of its recipe behind set., e.g. "
        "set.train.steps=50",
    )  # fmt: skip
    command.add_argument(
        "--jobs", type=int, metavar="N", help="runs under way at a time (default: one a GPU, else a core)"
    )
    command.set_defaults(run=_compare)


def _compare(parsed: argparse.Namespace) -> int:
    from versatune_ds.comparison.compare import compare

    write(str(compare(parsed.comparison, parsed.overrides, num_jobs=parsed.jobs)))
    return 0
