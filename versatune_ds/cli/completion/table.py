"""What can follow on the command line, as one table that a shell script looks words up in.

A shell asks at every press of TAB, and Python would answer after half a second. So the table is written into the
script, once, and the script starts no Python.

The table, for a command `train` with an option `--launcher`:

    ""                  check train ...           the subcommands
    "train"             --fresh --launcher ...    its options
    "train 1"           @recipe                   its first argument
    "train 2"           @keys                     every argument after that
    "train --launcher"  deepspeed torchrun ...    what follows the option; nothing if it takes no value
    "@keys"             mixture.policy ...        the keys of a recipe
    "@key mixture.policy"  steer uniform ...      the values of a key

Words that begin with @ stand for what the shell knows: @file, @folder, @recipe (YAML files), @keys, and @any, for which
there is nothing to suggest.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from versatune_ds.cli.arguments import path_argument
from versatune_ds.config.held_out_metric import METRICS_OF_ALL
from versatune_ds.config.keys import Key, recipe_keys
from versatune_ds.config.mixture import BUILT_IN_SIGNALS
from versatune_ds.mixture.policies import POLICIES
from versatune_ds.paths import PROJECT_DIR

Table = dict[str, tuple[str, ...]]

_HELP = ("--help",)
_WITHOUT_RECIPE_KEYS = ("compare",)
"""Subcommands whose `key=value` are keys of something else."""
_KIND_OF_NAME = {
    "recipe": "@recipe",
    "comparison": "@recipe",
    "data_recipe": "@recipe",
    "pattern": "@keys",
    "sweep": "@keys",
}
_NAMES_OF_KEY = {
    "mixture.policy": tuple(POLICIES),
    "mixture.signal": BUILT_IN_SIGNALS,
    "checkpoint.best": METRICS_OF_ALL,
    "train.early_stopping.metric": METRICS_OF_ALL,
}
"""Names that a key takes besides those that a user makes up."""
_FOLDERS = ("FOLDER", "RUN", "RUN|FOLDER", "BASE")


def completion_table(parser: argparse.ArgumentParser, *, listed: tuple[str, ...]) -> Table:
    """Return the table of a parser.

    Args:
        parser: The parser of `versatune`.
        listed: Names of the subcommands to suggest.
    """
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    table: Table = {"": (*listed, *_HELP, "--version")}
    for name in listed:
        table.update(_of_command(name, commands.choices[name]))
    keys = [key for key in recipe_keys() if key.name == key.name.lower()]  # DOMAIN and NAME are the user's to choose
    table["@keys"] = tuple(key.name for key in keys)
    table.update((f"@key {key.name}", values) for key in keys if (values := _values_of(key)))
    return table


def _of_command(name: str, command: argparse.ArgumentParser) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the entries of a subcommand."""
    actions = [action for action in command._actions if action.help != argparse.SUPPRESS]
    yield name, tuple(max(action.option_strings, key=len) for action in actions if action.option_strings)
    arguments = [action for action in actions if not action.option_strings]
    for number, action in enumerate(arguments, start=1):
        if action.dest != "overrides":
            places = (number, number + 1) if action.nargs in ("*", "+") else (number,)
            yield from ((f"{name} {place}", _suggestions(action)) for place in places)
        elif name not in _WITHOUT_RECIPE_KEYS:
            yield f"{name} {number}", ("@keys",)
    for action in actions:
        for option in action.option_strings:
            if action.nargs != 0:
                yield f"{name} {option}", _suggestions(action)


def _suggestions(action: argparse.Action) -> tuple[str, ...]:
    """Return what an argument, or an option's value, may be."""
    if action.choices is not None:
        return tuple(map(str, action.choices))
    if action.dest in _KIND_OF_NAME:
        return (_KIND_OF_NAME[action.dest],)
    if action.type is not path_argument:
        return ("@any",)
    return ("@folder",) if action.metavar in _FOLDERS else ("@file",)


def _values_of(key: Key) -> tuple[str, ...]:
    """Return what a key may be set to; empty where there is nothing to suggest."""
    if key.name in _NAMES_OF_KEY:
        return _NAMES_OF_KEY[key.name]
    if key.name == "train.deepspeed":
        return (*sorted(path.stem for path in (PROJECT_DIR / "ds_configs").glob("*.json")), "@file")
    return (*key.values, "@file") if key.is_path else key.values
