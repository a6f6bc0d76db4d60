"""An argument parser whose errors are one line: the option, what was expected, what was given, and the nearest name."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from versatune_ds.cli.arguments import print_error
from versatune_ds.exit_codes import USER_ERROR_EXIT_CODE

_KINDS = {"int": "a whole number", "float": "a number"}
_WRONG_VALUE = re.compile(r"invalid (\w+) value: (.*)", re.DOTALL)
_NO_VALUE = {"expected one argument": "expected a value", "expected at least one argument": "expected at least a value"}


class OneLineParser(argparse.ArgumentParser):
    """Reports mistakes as the commands report those in a recipe; argparse's own parser prints the usage before them."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Raise ArgumentError, with the nearest one, for a value that is none of an option's choices."""
        if action.choices is not None and value not in action.choices:
            choices = tuple(map(str, action.choices))
            raise argparse.ArgumentError(
                action, f"expected {_listed(choices)}, got {value!r}{_nearest(value, choices)}"
            )

    def error(self, message: str) -> NoReturn:
        """Write the message in one line, and exit with code 2."""
        option, colon, text = message.removeprefix("argument ").partition(": ")
        if message.startswith("argument ") and colon:
            message = f"{option}: {_in_words(text)}"
        message = message.replace("the following arguments are required:", "missing:")
        message += self._nearest_option(message)
        print_error(f"{self.prog.removeprefix('versatune').strip()}{': ' * (self.prog != 'versatune')}{message}")
        raise SystemExit(USER_ERROR_EXIT_CODE)

    def _nearest_option(self, message: str) -> str:
        """Return the option that an unknown one may be, else where the options are listed."""
        unknown = re.match(r"unrecognized arguments: --([^\s=]+)", message)
        known = tuple(option.removeprefix("--") for option in self._option_string_actions if option.startswith("--"))
        hint = _nearest(unknown[1], known, dashes="--") if unknown and ";" not in message else ""
        return hint or ("" if ";" in message else f"; `{self.prog} --help` lists what it takes")


def _in_words(text: str) -> str:
    """Return what argparse says of a value, in the words of the other messages."""
    wrong = _WRONG_VALUE.fullmatch(text)
    if wrong:
        return f"expected {_KINDS.get(wrong[1], 'another value')}, got {wrong[2]}"
    return _NO_VALUE.get(text, text)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _nearest(value: Any, known: Sequence[str], *, dashes: str = "") -> str:
    """Return `; did you mean ...?` with the nearest of some names; empty where none is near."""
    from difflib import get_close_matches

    close = get_close_matches(str(value), known, n=1, cutoff=0.75)
    return f"; did you mean {dashes + close[0]!r}?" if close else ""
