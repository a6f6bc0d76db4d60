"""Define the `versatune` command: parse arguments, call the right function, return its exit code.

A user's mistake is one line on stderr and exit code 2. A failure (no complete checkpoint, an endpoint that is down, a
full disk) is one line and exit code 1, or a traceback with VERSATUNE_DEBUG=1 in the environment. Ctrl-C is one
line and exit code 130.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from versatune_ds import __version__
from versatune_ds.cli.convert import add_convert
from versatune_ds.cli.measure import add_compare, add_detect, add_evaluate, add_plan, add_reference
from versatune_ds.cli.recipe import add_check, add_inspect, add_keys, add_prepare, add_simulate
from versatune_ds.cli.run import add_explain, add_export, add_replay, add_report
from versatune_ds.cli.train import add_job, add_submit, add_train, add_worker
from versatune_ds.exit_codes import FAILED_EXIT_CODE, INTERRUPTED_EXIT_CODE, USER_ERROR_EXIT_CODE, is_interrupt
from versatune_ds.log import configure_logging

DEBUG_VARIABLE = "VERSATUNE_DEBUG"
"""Environment variable that, when set and not 0, lets failures show their traceback."""

ADD_COMMANDS = (
    add_train,
    add_worker,
    add_check,
    add_keys,
    add_submit,
    add_job,
    add_convert,
    add_prepare,
    add_inspect,
    add_detect,
    add_reference,
    add_plan,
    add_simulate,
    add_replay,
    add_explain,
    add_report,
    add_export,
    add_evaluate,
    add_compare,
)
"""One function per subcommand, in the order of the help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code."""
    parsed = parse(arguments)
    configure_logging(level=logging.WARNING if getattr(parsed, "quiet", False) else logging.INFO)
    try:
        return parsed.run(parsed)
    except (Exception, KeyboardInterrupt) as error:
        if is_interrupt(error):
            _print_interrupt(parsed)
            return INTERRUPTED_EXIT_CODE
        return _report(error)


def _report(error: BaseException) -> int:
    """Report a user's mistake or a failure in one line, and return the exit code; raise what is a bug of ours."""
    if isinstance(error, ValueError):
        _print_error(str(error))
        return USER_ERROR_EXIT_CODE
    if isinstance(error, BrokenPipeError):
        return 0
    is_bug = isinstance(error, (RecursionError, NotImplementedError))  # RuntimeErrors too, but only the traceback helps
    is_debugging = os.environ.get(DEBUG_VARIABLE, "0") != "0"
    if is_bug or is_debugging or not isinstance(error, (RuntimeError, OSError)):
        raise error
    text = "\n".join([str(error) or type(error).__name__, *getattr(error, "__notes__", ())])
    _print_error(f"{text} ({DEBUG_VARIABLE}=1 shows the traceback)")
    return FAILED_EXIT_CODE


def _print_interrupt(parsed: argparse.Namespace) -> None:
    """Report Ctrl-C in one line, with what is kept; of the processes of a run only the first reports it."""
    starts_over = getattr(parsed, "fresh", False) or getattr(parsed, "score", None)  # a scored model keeps nothing
    kept = "" if starts_over else parsed.kept
    if os.environ.get("RANK", "0") in ("", "0"):
        _print_error(f"interrupted; {kept}: the same command continues" if kept else "interrupted")


def _print_error(message: str) -> None:
    """Write a message to stderr, each line prefixed with the program's name."""
    for line in message.splitlines():
        sys.stderr.write(f"versatune: {line}\n")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; unlike argparse alone, allow `key=value` before and after options."""
    parser = build_parser()
    parsed, rest = parser.parse_known_args(arguments)
    are_overrides = all("=" in text and not text.startswith("-") for text in rest)
    if rest and not (are_overrides and hasattr(parsed, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        parsed.overrides = [*parsed.overrides, *rest]
    return parsed


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands."""
    parser = argparse.ArgumentParser(
        prog="versatune",
        description="Fine-tune a language model on several domains, with a data mixture that adapts during training.",
    )
    parser.add_argument("--version", action="version", version=f"versatune_ds {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for add in ADD_COMMANDS:
        add(commands)
    return parser
