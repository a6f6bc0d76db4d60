"""Define the `versatune` command: parse arguments, call the right function, return its exit code.

A user's mistake is one line on stderr and exit code 2. A failure (no complete checkpoint, an endpoint that is down, a
full disk) is one line and exit code 1, or a traceback with VERSATUNE_DEBUG=1 in the environment. Ctrl-C is one
line and exit code 130.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from versatune_ds.cli.arguments import print_error
from versatune_ds.cli.parser import build_parser, parse
from versatune_ds.exit_codes import FAILED_EXIT_CODE, INTERRUPTED_EXIT_CODE, USER_ERROR_EXIT_CODE, is_interrupt
from versatune_ds.log import configure_logging
from versatune_ds.progress import working_on
from versatune_ds.text_table import fit_to, terminal_width

DEBUG_VARIABLE = "VERSATUNE_DEBUG"
"""Environment variable that, when set and not 0, lets failures show their traceback."""

_RANK_VARIABLES = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
_STARTS_PROCESSES = ("train", "worker", "job", "reference", "compare")

__all__ = ["DEBUG_VARIABLE", "build_parser", "main", "parse"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code."""
    parsed = parse(arguments)
    configure_logging(level=logging.WARNING if getattr(parsed, "quiet", False) else logging.INFO)
    try:
        with _shown_as_running(parsed.command_name), fit_to(terminal_width()):
            if parsed.check is not None:
                parsed.check(parsed)
            return parsed.run(parsed)
    except (Exception, KeyboardInterrupt) as error:
        if is_interrupt(error):
            _print_interrupt(parsed)
            return INTERRUPTED_EXIT_CODE
        return _report(error)


def _shown_as_running(command: str) -> AbstractContextManager[None]:
    """Show after a silence that a command is running: importing libraries alone takes up to a minute.

    One that starts processes shows it until its first line only, as they write to the same terminal. Of the processes
    of a run only the first shows it; its rank is not looked up in `distributed`, which imports torch.
    """
    if any(os.environ.get(name, "0") not in ("", "0") for name in _RANK_VARIABLES):
        return nullcontext()
    text = "loading libraries" if command == "worker" else f"versatune {command}"
    return working_on(text, ends_at_output=command in _STARTS_PROCESSES)


def _report(error: BaseException) -> int:
    """Report a user's mistake or a failure in one line, and return the exit code; raise what is a bug of ours."""
    if isinstance(error, ValueError):
        print_error(str(error))
        return USER_ERROR_EXIT_CODE
    if isinstance(error, BrokenPipeError):
        return 0
    is_bug = isinstance(error, (RecursionError, NotImplementedError))  # RuntimeErrors too, but only the traceback helps
    is_debugging = os.environ.get(DEBUG_VARIABLE, "0") != "0"
    if is_bug or is_debugging or not isinstance(error, (RuntimeError, OSError)):
        raise error
    text = "\n".join([str(error) or type(error).__name__, *getattr(error, "__notes__", ())])
    print_error(f"{text} ({DEBUG_VARIABLE}=1 shows the traceback)")
    return FAILED_EXIT_CODE


def _print_interrupt(parsed: argparse.Namespace) -> None:
    """Report Ctrl-C in one line, with what is kept; of the processes of a run only the first reports it."""
    starts_over = getattr(parsed, "fresh", False) or getattr(parsed, "score", None)  # a scored model keeps nothing
    kept = "" if starts_over else parsed.kept
    if os.environ.get("RANK", "0") in ("", "0"):
        print_error(f"interrupted; {kept}: the same command continues" if kept else "interrupted")
