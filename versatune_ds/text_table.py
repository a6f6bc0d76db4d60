"""Lay out text tables with rich: the same lines on every terminal, in logs and in files."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

from rich.box import Box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_RULES = Box("    \n    \n----\n    \n----\n----\n    \n    \n", ascii=True)
"""A rule below the header and above the footer, nothing else."""
_WIDTH = 1_000_000
"""Columns of the page drawn on: more than any table has, so that no cell is wrapped or cut off."""


def text_table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, num_left: int = 1, footer: Sequence[str] = ()
) -> str:
    """Return rows as aligned columns without colour, wrapping or trailing spaces.

    Columns align as a terminal shows them: a Chinese character takes two places, an accent none. What looks like
    markup in a cell is text.

    Args:
        header: Titles of the columns, with a rule below them; empty for a table without titles.
        rows: Texts of the cells, as many in each row as there are columns.
        num_left: Leading columns that are aligned to the left; the others are aligned to the right.
        footer: A last row below a rule, such as a mean.
    """
    lines = [list(row) for row in (header, *rows, footer) if row]
    table = Table(box=_RULES, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    table.show_header, table.show_footer = bool(header), bool(footer)
    for i in range(len(lines[0]) if lines else 0):
        title, total = (Text(cells[i] if cells else "") for cells in (header, footer))
        table.add_column(title, total, justify="left" if i < num_left else "right", no_wrap=True)
    for cells in lines[bool(header) : len(lines) - bool(footer)]:
        table.add_row(*map(Text, cells))
    # Everything is set by hand: rich would otherwise look for colours, a width or a notebook in the environment.
    console = Console(
        file=io.StringIO(), width=_WIDTH, color_system=None, force_terminal=False, force_jupyter=False,
        legacy_windows=False, safe_box=False, _environ={},
    )  # fmt: skip
    with console.capture() as capture:
        console.print(table, overflow="ignore", crop=False)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def listed(texts: Sequence[object], *, most: int) -> str:
    """Return texts in one line; of more than `most`, only the first and how many more there are."""
    more = f" and {len(texts) - most:,} more" if len(texts) > most else ""
    return ", ".join(map(str, texts[:most])) + more


def counted(number: int, noun: str, *, plural: str = "") -> str:
    """Return a number with its noun: `1 process`, `2,000 steps`; the plural ends in s unless it is given."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def number_cell(value: float | None, form: str = ".3f") -> str:
    """Return a number as the text of a cell, a dash for an unknown one."""
    return "-" if value is None else format(value, form)
