"""Write the completion script of a shell: the table as a function of that shell, then the fixed part of the script."""

from __future__ import annotations

from pathlib import Path

from versatune_ds.cli.completion.table import Table

_MARK = "# TABLE\n"
"""Line of a fixed part that the table replaces."""


def completion_script(shell: str, table: Table) -> str:
    """Return the script, without a line end at its end."""
    fixed = (Path(__file__).parent / f"versatune.{shell}").read_text(encoding="utf-8")
    function = _fish_function(table) if shell == "fish" else _case_function(table)
    return fixed.replace(_MARK, function).rstrip()


def _case_function(table: Table) -> str:
    """Return a function of bash and zsh that sets REPLY to the words of an entry, nothing if there is none."""
    entries = "\n".join(f"    '{entry}') REPLY='{' '.join(words)}' ;;" for entry, words in table.items())
    return f'_versatune_table() {{\n  REPLY=\n  case "$1" in\n{entries}\n  esac\n}}\n'


def _fish_function(table: Table) -> str:
    """Return a function of fish that prints the words of an entry, one a line."""
    entries = "\n".join(
        f"    case '{entry}'\n      string split -- ' ' '{' '.join(words)}'" for entry, words in table.items()
    )
    return f'function __versatune_table\n  switch "$argv[1]"\n{entries}\n  end\nend\n'
