"""Arguments that several subcommands share, and writing to stdout. Every subcommand has a sentence and an example."""

from __future__ import annotations

import argparse
import os
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from versatune_ds.paths import expand_path
from versatune_ds.progress import before_output

Commands = argparse._SubParsersAction
Run = Callable[[argparse.Namespace], int]
"""Runs a subcommand with its arguments and returns the exit code."""


def path_or_name(text: str) -> str:
    """Return an argument that is a path or a Hub name, with ~ and $VARIABLES expanded.

    Shells do not expand the ~ of --output=~/x, nor variables in quotes. Argparse reports an error under the option's
    name.
    """
    try:
        return expand_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def path_argument(text: str) -> Path:
    """Return an argument that is a path, expanded."""
    return Path(path_or_name(text))


def comma_separated(text: str) -> tuple[str, ...]:
    """Return the names in a text `A,B`."""
    return tuple(unicodedata.normalize("NFC", text).split(","))


DEFAULT_CHECKPOINT = "the best one where checkpoint.best is set, else the newest"
FILE: dict[str, Any] = {"type": path_argument, "metavar": "FILE"}
FOLDER: dict[str, Any] = {"type": path_argument, "metavar": "FOLDER"}
NUMBER: dict[str, Any] = {"type": int, "metavar": "N"}
OVERRIDES: dict[str, Any] = {"nargs": "*", "default": [], "metavar": "key=value"}
"""Settings of `add_argument` for kinds of arguments; without a default, argparse would report overrides as required."""


def add_command(commands: Commands, name: str, run: Run, *, example: str, kept: str = "") -> argparse.ArgumentParser:
    """Add a subcommand; the docstring of the function that runs it is its sentence in the help.

    Args:
        commands: Where it is added.
        name: What the user types.
        run: Runs it.
        example: A complete command, for the help.
        kept: What an interrupted command keeps, so that the same command continues; empty where it would start over.
    """
    command = commands.add_parser(
        name,  # not help=: it would add the command to a list without groups (`parser.py` has its own)
        description=run.__doc__,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run, check=None, kept=kept, command_name=name)
    return command


def add_recipe(command: argparse.ArgumentParser) -> None:
    """Let a subcommand take a recipe and overrides."""
    command.set_defaults(check=_check_recipe)
    command.add_argument("recipe", type=path_argument, help="YAML file, see recipes/")
    command.add_argument("overrides", **OVERRIDES, help="recipe keys to change, e.g. train.learning_rate=1e-4")
    command.add_argument("--quiet", action="store_true", help="log only warnings and errors")


def add_run_folder(command: argparse.ArgumentParser) -> None:
    """Let a subcommand take the folder of a run."""
    command.set_defaults(check=_check_run_folder)
    command.add_argument("run_dir", type=path_argument, metavar="RUN", help="folder of a run, e.g. runs/quickstart")


def add_nodes(command: argparse.ArgumentParser) -> None:
    """Let a subcommand with --sharded run on several machines."""
    command.add_argument(
        "--nodes",
        **NUMBER,
        help="machines that --sharded uses: of the allocation, or the first of the hostfile",
    )
    command.add_argument("--hostfile", **FILE, help="machines to start on, one `NAME slots=N` per line")
    command.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)  # launcher/sharded.py adds it
    command.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it


def on_machines(parsed: argparse.Namespace, run_here: Callable[[int | None], int]) -> int:
    """Run a subcommand here, or start it on several machines where --nodes or --hostfile says so.

    Args:
        parsed: The command line.
        run_here: Runs it with a number of processes, and returns the exit code.
    """
    if parsed.worker:
        from versatune_ds.launch.start_sharded import run_sharded_rank

        return run_sharded_rank(lambda world: run_here(world.world_size), is_quiet=parsed.quiet)
    if parsed.nodes is None and parsed.hostfile is None:
        return run_here(parsed.processes)
    from versatune_ds.launch.start_sharded import start_sharded

    return start_sharded(
        parsed.words,
        is_sharded=parsed.sharded,
        nodes=parsed.nodes,
        hostfile=parsed.hostfile,
        processes=parsed.processes,
    )


def _check_recipe(parsed: argparse.Namespace) -> None:
    """Read the recipe, only to find its mistakes before the subcommand imports libraries that take seconds.

    A pipe can be read once. The processes of a run read it later, and report a mistake together.

    Raises:
        ValueError: One line per mistake.
    """
    if not parsed.recipe.is_fifo() and not getattr(parsed, "worker", False):
        from versatune_ds.config import load_config

        load_config(parsed.recipe, parsed.overrides)


def check_can_write(parsed: argparse.Namespace) -> None:
    """Check that a subcommand can write where it will, before it imports libraries that take seconds.

    Raises:
        ValueError: If it cannot, with the key or option of the folder.
    """
    from versatune_ds.cli.output_folders import check_output_folders

    check_output_folders(parsed)


def check_shared_weights(parsed: argparse.Namespace, *, default: int | None) -> None:
    """Check the processes of --sharded on this machine, before libraries are imported.

    Args:
        parsed: The command line.
        default: Processes where it gives none; None where that depends on the machine, which is seen later.

    Raises:
        ValueError: If one process would have all weights.
    """
    from versatune_ds.config.row_groups import check_divides_weights

    num_processes = default if parsed.processes is None else parsed.processes
    is_here = not parsed.worker and parsed.nodes is None and parsed.hostfile is None
    if parsed.sharded and is_here and num_processes == 1:
        check_divides_weights(num_processes)


def check_shared_rows(parsed: argparse.Namespace) -> None:
    """Check that the processes of the command line divide into groups that share a row, before libraries are imported.

    A number that depends on the machines, on a hostfile or on an allocation is checked later.

    Raises:
        ValueError: If they do not.
    """
    from versatune_ds.config import load_config
    from versatune_ds.config.row_groups import check_ranks_divide

    num_nodes = parsed.nodes or (None if "SLURM_JOB_ID" in os.environ else 1)
    is_known = parsed.processes is not None and parsed.hostfile is None and num_nodes is not None
    if not is_known or parsed.recipe.is_fifo() or min(parsed.processes, num_nodes) < 1:
        return
    num_slices = load_config(parsed.recipe, parsed.overrides).train.sequence_parallel
    check_ranks_divide(world_size=parsed.processes * num_nodes, num_slices=num_slices)


def _check_run_folder(parsed: argparse.Namespace) -> None:
    """Check for the same reason that the folder is a run's.

    Raises:
        ValueError: If it is not.
    """
    from versatune_ds.run_folder.recorded_config import check_has_config

    check_has_config(parsed.run_dir)


def write(text: str) -> None:
    """Write text and a line end to stdout; characters that its encoding lacks are escaped."""
    before_output()
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")


def print_error(message: str) -> None:
    """Write a message to stderr, each line prefixed with the program's name."""
    before_output()
    for line in message.splitlines():
        sys.stderr.write(f"versatune: {line}\n")
