"""Count the columns of a domain whose text is not trained on, and describe them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

UNREAD_WAY_OUT = "if they belong to the example, list them in `columns` of data.domains"
_MAX_NAMES = 12
_MAX_NAME_CHARACTERS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class UnreadColumn:
    """One column, or one key of messages (`messages[].note`), that is not trained on."""

    name: str
    num_rows: int
    place: str
    """file:line of the first of these rows."""
    is_label: bool
    """Whether it is a label (an id, a source), or excluded by `columns`, in all of these rows."""


class UnreadCounter:
    """Count, over the records of a domain, the columns that are not used."""

    def __init__(self) -> None:
        self._found: dict[str, UnreadColumn] = {}

    def add(self, names: Iterable[str], *, is_label: bool, place: str) -> None:
        """Count the unused columns of one record."""
        for name in names:
            before = self._found.get(name)
            self._found[name] = UnreadColumn(
                name=name,
                num_rows=1 + (before.num_rows if before else 0),
                place=before.place if before else place,
                is_label=is_label and (before is None or before.is_label),
            )

    def columns(self) -> tuple[UnreadColumn, ...]:
        """Return the columns, those in most rows first."""
        return tuple(sorted(self._found.values(), key=lambda column: (-column.num_rows, column.name)))


def columns_from_json(values: Iterable[Mapping[str, Any]]) -> tuple[UnreadColumn, ...]:
    """Return columns from their JSON values."""
    return tuple(UnreadColumn(**value) for value in values)


def describe_text(columns: Iterable[UnreadColumn]) -> str:
    """Return the columns with text, each with its number of rows and the first of them; empty if there are none."""
    found = [column for column in columns if not column.is_label]
    names = [f"{_printable(c.name)} ({c.num_rows:,} rows, first {_printable(c.place, limit=400)})" for c in found]
    return _listed(names)


def describe_labels(columns: Iterable[UnreadColumn]) -> str:
    """Return the names of the columns that are labels; empty if there are none."""
    return _listed([_printable(column.name) for column in columns if column.is_label])


def _listed(names: list[str]) -> str:
    """Return names in one line; of many, only the first."""
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


def _printable(text: str, *, limit: int = _MAX_NAME_CHARACTERS) -> str:
    """Return a name from a data file, safe for a terminal and not too long."""
    shown = text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
    return shown if len(shown) <= limit else f"{shown[:limit]}..."
