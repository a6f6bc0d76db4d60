"""Arguments that several subcommands share, and writing to stdout. Every subcommand has a sentence and an example."""

from __future__ import annotations

import argparse
import sys
import unicodedata
from pathlib import Path

from versatune_ds.paths import expand_path

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
    command.add_argument("recipe", type=path_argument, help="YAML file, see recipes/")
    command.add_argument(
        "overrides", nargs="*", metavar="key=value", help="recipe keys to change, e.g. mixture.sigma=0.3"
    )
    command.add_argument("--quiet", action="store_true", help="log only warnings and errors")
    return command


def add_run_command(commands: Commands, name: str, help_text: str, *, example: str) -> argparse.ArgumentParser:
    """Add a subcommand that takes the folder of a run."""
    command = add_command(commands, name, help_text, example=example)
    command.add_argument("run_dir", type=path_argument, metavar="RUN", help="folder of a run, e.g. runs/quickstart")
    return command


def path_argument(text: str) -> Path:
    """Return a path argument, expanded: shells do not expand the ~ of --output=~/x, nor $VARIABLES in quotes."""
    return Path(_expanded(text))


def path_or_name(text: str) -> str:
    """Return an argument that is a path or a Hub name, expanded."""
    return _expanded(text)


def _expanded(text: str) -> str:
    """Return a path with ~ and variables expanded; argparse reports an error under the option's name."""
    try:
        return expand_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def comma_separated(text: str) -> tuple[str, ...]:
    """Return the names in a text `A,B`."""
    return tuple(unicodedata.normalize("NFC", text).split(","))


def write(text: str) -> None:
    """Write text and a line end to stdout; characters that its encoding lacks are escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
