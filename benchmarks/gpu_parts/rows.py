"""One measured line of a table, and how a failure becomes one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TypeVar

T = TypeVar("T")
Value = str | int | float | None

_FOLDERS = re.compile(r"(?<![\w.:/])/(?:[^\s/:'\"()\[\],]+/)+")
_LONGEST_REASON = 240


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of a table: what was measured, or the reason why it could not be."""

    table: str
    name: str
    values: Mapping[str, Value] = field(default_factory=dict)
    """Column to value; a column's name carries its unit. Rows of a table may have different columns."""
    failed: str | None = None

    def to_json(self) -> str:
        """Return the row as one line."""
        return json.dumps(asdict(self))


def row_of_json(line: str) -> Row | None:
    """Return the row in a line; None for a line that is none, such as the last one of a killed process."""
    try:
        return Row(**json.loads(line))
    except (ValueError, TypeError):
        return None


def failed_row(table: str, name: str, reason: str) -> Row:
    """Return a row that carries a reason, in one line and without folders of this machine."""
    return Row(table=table, name=name, failed=without_folders(" ".join(reason.split()))[:_LONGEST_REASON])


def reason_of(error: BaseException) -> str:
    """Return an error as one line: its type, and the first line of its text."""
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}".rstrip(": ")


def attempt(table: str, name: str, measure: Callable[[], Mapping[str, Value]]) -> Row:
    """Return the row of a measurement, or of its failure: a contestant that fails never ends a part."""
    try:
        return Row(table=table, name=name, values=measure())
    except Exception as error:
        return failed_row(table, name, reason_of(error))


def without_folders(text: str) -> str:
    """Replace absolute folders, which belong to one machine.

    Example: `/home/me/x/train.py: no such file` gives `.../train.py: no such file`.
    """
    return _FOLDERS.sub(".../", text)
