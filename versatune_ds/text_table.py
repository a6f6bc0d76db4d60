"""Lay out text tables with rich: the same lines on every terminal wide enough, in logs and in files.

Within `fit_to(width)`, which the command line uses on a terminal, a wider table has its names shortened and, if that is
not enough, continues below with its other columns.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from rich.box import Box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

_RULES = Box("    \n    \n----\n    \n----\n----\n    \n    \n", ascii=True)
"""A rule below the header and above the footer, nothing else."""
_WIDTH = 1_000_000
"""Columns of the page drawn on: more than any table has, so that no cell is wrapped or cut off."""
_SHORTEST_NAME, _NAME_IN_PARTS = 16, 24
"""Characters that a name keeps at least; and where the table is written in parts, which repeat it."""
_fit_width: ContextVar[int | None] = ContextVar("_fit_width", default=None)


@contextmanager
def fit_to(width: int | None) -> Iterator[None]:
    """Fit the tables and paragraphs laid out within a block to a width; None leaves them as they are."""
    token = _fit_width.set(width)
    try:
        yield
    finally:
        _fit_width.reset(token)


def terminal_width() -> int | None:
    """Return the columns of the terminal that stdout or stderr is; None for files and pipes. COLUMNS overrules."""
    if os.environ.get("COLUMNS", "").isdigit():
        return int(os.environ["COLUMNS"])
    return shutil.get_terminal_size().columns if sys.stdout.isatty() or sys.stderr.isatty() else None


def is_fitted() -> bool:
    """Return whether tables and paragraphs are fitted to a width here."""
    return _fit_width.get() is not None


def paragraph(text: str, *, indent: int = 0) -> str:
    """Return text wrapped between words at the width of `fit_to`; later lines begin with `indent` spaces."""
    width = _fit_width.get()
    if width is None or cell_len(text) <= width:
        return text
    lines = textwrap.wrap(
        text, max(width, indent + 20), subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False,
        drop_whitespace=True, replace_whitespace=False,
    )  # fmt: skip
    return "\n".join(lines)


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
    width = _fit_width.get()
    if width is None or _width_of(lines) <= width:
        return _drawn(lines, has_header=bool(header), has_footer=bool(footer), num_left=num_left)
    texts = [
        _drawn(part, has_header=bool(header), has_footer=bool(footer), num_left=num_left)
        for part in _parts(
            _with_short_names(lines, width=width, has_header=bool(header)), width=width, num_left=num_left
        )
    ]
    return "\n\n".join(texts)


def _column_widths(lines: Sequence[Sequence[str]]) -> list[int]:
    return [max(cell_len(line) for cell in column for line in cell.split("\n")) for column in zip(*lines, strict=True)]


def _width_of(lines: Sequence[Sequence[str]]) -> int:
    widths = _column_widths(lines) or [0]
    return sum(widths) + 2 * (len(widths) - 1)


def _with_short_names(lines: list[list[str]], *, width: int, has_header: bool) -> list[list[str]]:
    """Return the table with the names of its first column shortened as far as needed, and still different."""
    names = [line[0] for line in lines[has_header:]]
    longest = max((len(name) for name in names), default=0)
    limit = longest - (_width_of(lines) - width)
    if limit < _SHORTEST_NAME:  # it will be written in parts anyway
        limit = _NAME_IN_PARTS
    while len({_shortened(name, limit) for name in names}) < len(set(names)):
        limit += 1
    return [*lines[:has_header], *([_shortened(line[0], limit), *line[1:]] for line in lines[has_header:])]


def _shortened(name: str, limit: int) -> str:
    """Return a name of at most `limit` characters, without its middle: `european_com…judgments`."""
    if len(name) <= limit:
        return name
    tail = (limit - 1) * 2 // 5
    return f"{name[: limit - 1 - tail]}…{name[len(name) - tail :]}"


def _parts(lines: list[list[str]], *, width: int, num_left: int) -> Iterator[list[list[str]]]:
    """Yield tables with as many columns as fit, each with the first `num_left` columns, at least one other."""
    widths = _column_widths(lines)
    first, num_columns = min(num_left, len(widths) - 1), len(widths)
    start = first
    while start < num_columns:
        end = start + 1
        kept = sum(widths[:first]) + 2 * first
        while end < num_columns and kept + sum(widths[start : end + 1]) + 2 * (end - start) <= width:
            end += 1
        yield [[*line[:first], *line[start:end]] for line in lines]
        start = end


def _drawn(lines: list[list[str]], *, has_header: bool, has_footer: bool, num_left: int) -> str:
    """Return a table as rich lays it out."""
    header, footer = lines[0] if has_header else [], lines[-1] if has_footer else []
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
