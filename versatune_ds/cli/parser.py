"""Parse the command line of `versatune`: all subcommands, their grouped help, and hints for names that are misspelt."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from versatune_ds import __version__
from versatune_ds.cli.arguments import Commands, print_error
from versatune_ds.cli.convert import add_convert
from versatune_ds.cli.evaluate import add_compare, add_evaluate
from versatune_ds.cli.measure import add_detect, add_plan, add_reference
from versatune_ds.cli.one_line_parser import OneLineParser
from versatune_ds.cli.recipe import add_check, add_inspect, add_keys, add_prepare, add_simulate
from versatune_ds.cli.run import add_explain, add_export, add_replay, add_report
from versatune_ds.cli.setup import add_completion, add_env
from versatune_ds.cli.train import add_job, add_submit, add_train, add_worker
from versatune_ds.exit_codes import USER_ERROR_EXIT_CODE

COMMAND_GROUPS: dict[str, tuple[Callable[[Commands], None], ...]] = {
    "first steps": (add_check, add_train, add_report, add_export, add_keys),
    "before a run": (add_convert, add_prepare, add_inspect, add_detect, add_reference, add_plan, add_simulate),
    "after a run": (add_evaluate, add_explain, add_replay, add_compare),
    "on a Slurm cluster": (add_submit,),
    "the installation": (add_env, add_completion),
}
"""Title in the help -> one function per subcommand, in the order of the help."""

ADD_INTERNAL_COMMANDS = (add_worker, add_job)
"""Subcommands that launchers and Slurm start; the help does not list them."""

_COMMANDS_ELSEWHERE = {
    "sft": "train", "fit": "train", "finetune": "train", "fine-tune": "train", "preprocess": "prepare",
    "merge": "export", "merge-lora": "export", "merge_lora": "export", "test": "evaluate", "validate": "check",
}  # fmt: skip
"""Subcommands of TRL, Axolotl and others that have another name here."""

_DESCRIPTION = "Fine-tune a language model on several domains, with a data mixture that adapts during training."
_USAGE = "versatune [-h] [--version] COMMAND ..."
_WIDEST_HELP = 100


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; unlike argparse alone, allow `key=value` before and after options.

    Raises:
        SystemExit: With code 2 for a command line that makes no sense; it is reported on stderr first.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser, listed, known = _parser_and_names()
    if arguments and not arguments[0].startswith("-") and arguments[0] not in known:
        _refuse_command(arguments[0], listed)
    parsed, rest = parser.parse_known_args(arguments)
    parsed.words = list(arguments)
    are_overrides = all("=" in text and not text.startswith("-") for text in rest)
    has_overrides = hasattr(parsed, "overrides")
    if rest and not (are_overrides and has_overrides):
        known.get(arguments[0], parser).error(
            f"unrecognized arguments: {' '.join(rest)}{_key_hint(rest) if has_overrides else ''}"
        )
    if rest:
        parsed.overrides = [*parsed.overrides, *rest]
    return parsed


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands."""
    return _parser_and_names()[0]


def _parser_and_names() -> tuple[argparse.ArgumentParser, tuple[str, ...], Mapping[str, argparse.ArgumentParser]]:
    """Return the parser, the subcommands that the help lists, and the parsers of all subcommands."""
    parser = OneLineParser(
        prog="versatune",
        usage=_USAGE,
        description=textwrap.fill(_DESCRIPTION, _help_width()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"versatune_ds {__version__}")
    # Argparse has no groups of subcommands: its own list is suppressed, and the epilog lists them by group.
    commands = parser.add_subparsers(prog="versatune", required=True, metavar="COMMAND", help=argparse.SUPPRESS)
    groups: dict[str, dict[str, str]] = {}
    for title, add_group in COMMAND_GROUPS.items():
        earlier = set(commands.choices)
        for add in add_group:
            add(commands)
        groups[title] = {
            name: command.description or "" for name, command in commands.choices.items() if name not in earlier
        }
    listed = tuple(commands.choices)
    for add in ADD_INTERNAL_COMMANDS:
        add(commands)
    parser.epilog = _grouped_help(groups)
    return parser, listed, commands.choices


def _grouped_help(groups: Mapping[str, Mapping[str, str]]) -> str:
    """Return the list of subcommands for the help.

    Args:
        groups: Title -> name -> sentence.
    """
    column = 4 + max(len(name) for group in groups.values() for name in group)
    width = max(_help_width(), 2 * column)
    lines = []
    for title, group in groups.items():
        lines.append(f"{title}:")
        for name, sentence in group.items():
            beginning = f"  {name}".ljust(column)
            lines += textwrap.wrap(beginning + sentence, width, subsequent_indent=" " * column)
        lines.append("")
    lines.append("`versatune COMMAND --help` has the options of a command and an example.")
    return "\n".join(lines)


def _help_width() -> int:
    return min(shutil.get_terminal_size().columns - 2, _WIDEST_HELP)


def _refuse_command(name: str, listed: Sequence[str]) -> NoReturn:
    """Report an unknown subcommand in one line, with the nearest one or all of them, and exit with code 2."""
    from versatune_ds.domains import nearest_name  # it imports numpy, which no other subcommand waits for

    elsewhere = _COMMANDS_ELSEWHERE.get(name.lower())
    if elsewhere is not None:
        hint = f"here it is {elsewhere!r}"
    elif Path(name).suffix in (".yaml", ".yml"):
        hint = f"did you mean 'train {name}'?"
    else:
        hint = nearest_name(name.lower(), listed)
    print_error(f"{name!r}: no such command; {hint}")
    raise SystemExit(USER_ERROR_EXIT_CODE)


def _key_hint(rest: Sequence[str]) -> str:
    """Return how to write a recipe key that was given as an option, such as --lr; empty if none was."""
    from versatune_ds.config import RunConfig
    from versatune_ds.config.known_names import known_name

    for text in rest:
        key = text.lstrip("-").partition("=")[0]
        if not text.startswith("--"):
            continue
        if key.partition(".")[0] in RunConfig.model_fields and "." in key:
            return f"; recipe keys are given without dashes: {key}=VALUE"
        known = known_name(key)
        if known is not None:
            return f"; recipe keys are given without dashes, as section.key=VALUE; {known.answer()}"
    return ""


def listed_commands() -> tuple[str, ...]:
    """Return the subcommands that the help lists, in its order."""
    return _parser_and_names()[1]
