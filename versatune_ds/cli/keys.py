"""Wire the subcommand that lists the keys of a recipe."""

from __future__ import annotations

import argparse

from versatune_ds.cli.arguments import Commands, add_command, write


def add_keys(commands: Commands) -> None:
    """Add `versatune keys`."""
    help_text = "List the keys of a recipe with type, default and meaning."
    command = add_command(commands, "keys", help_text, example="versatune keys learning_rate")
    command.add_argument("pattern", nargs="?", default="", help="text in a name or meaning; * for anything")
    command.add_argument("--markdown", action="store_true", help="write the tables of docs/keys.md")
    command.set_defaults(run=_keys)


def _keys(parsed: argparse.Namespace) -> int:
    from versatune_ds.config.keys import keys_as_markdown, keys_as_text, recipe_keys

    keys = recipe_keys(parsed.pattern)
    if not keys:
        raise ValueError(f"{parsed.pattern!r}: no key of a recipe has that; `versatune keys` lists all")
    write(keys_as_markdown(keys).rstrip() if parsed.markdown else keys_as_text(keys))
    return 0
