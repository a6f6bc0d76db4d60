"""Build arguments that several subcommands share, and write to stdout.

The one idea: every subcommand has a sentence and an example, and both are tested.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

Commands = argparse._SubParsersAction


def add_command(commands: Commands, name: str, help_text: str, *, example: str) -> argparse.ArgumentParser:
    """Add a subcommand with its example."""
    return commands.add_parser(
        name,
        help=help_text,
        description=help_text,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_recipe_command(commands: Commands, name: str, help_text: str, *, example: str) -> argparse.ArgumentParser:
    """Add a subcommand that takes a recipe and overrides."""
    command = add_command(commands, name, help_text, example=example)
    command.add_argument("recipe", type=Path, help="YAML file; see recipes/")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="dotted keys, e.g. mixture.sigma=0.3")
    command.add_argument("--quiet", action="store_true", help="show warnings and errors only")
    return command


def add_run_command(commands: Commands, name: str, help_text: str, *, example: str) -> argparse.ArgumentParser:
    """Add a subcommand that takes the folder of a run."""
    command = add_command(commands, name, help_text, example=example)
    command.add_argument("run_dir", type=Path, metavar="RUN", help="folder of a run, e.g. runs/quickstart")
    return command


def comma_separated(text: str) -> tuple[str, ...]:
    """Return the names in a text `A,B`."""
    return tuple(text.split(","))


def write(text: str) -> None:
    """Write text and a line end to stdout; what its encoding lacks is written as an escape."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
