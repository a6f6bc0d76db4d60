"""Show a file with numbers by domain, such as prior.json, as a table, and its other entries as a list.

Every entry that is keyed by domains becomes a column, whatever its name, so entries added to a file later are shown
too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from versatune_ds.config.load import flatten
from versatune_ds.json_file import is_finite_number
from versatune_ds.report.scales import UNKNOWN
from versatune_ds.report.summary import flat_items


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainFile:
    """A file as it is shown: a table with one row of texts a domain, and everything else as (dotted key, text)."""

    columns: list[str]
    rows: list[list[str]]
    items: list[tuple[str, str]]


def domain_file(values: Mapping[str, Any], names: Sequence[str]) -> DomainFile:
    """Return a file's mapping as table and list.

    Args:
        values: Content of the file; empty for a missing file.
        names: The run's domains, the rows of the table.
    """
    columns: dict[str, Mapping[str, Any]] = {}
    rest: dict[str, Any] = {}
    for key, value in _entries(values, set(names)):
        if isinstance(value, Mapping):
            columns |= _columns(key, value)
        else:
            rest[key] = value
    known = dict.fromkeys([*names, *(name for column in columns.values() for name in column)])
    rows = [[name, *(_text(column.get(name)) for column in columns.values())] for name in known] if columns else []
    return DomainFile(columns=["domain", *columns], rows=rows, items=flat_items(rest))


def _entries(values: Mapping[str, Any], names: set[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of all values; a mapping whose keys are mostly domains is one value."""
    for key, value in values.items():
        is_mapping = isinstance(value, Mapping)
        is_by_domain = is_mapping and 2 * len(names & set(value)) >= max(len(value), 1)
        if is_mapping and not is_by_domain:
            yield from _entries(value, names, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _columns(key: str, by_domain: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return an entry's columns: one, or one for each name where a domain has several values."""
    entries = {name: flatten(entry) for name, entry in by_domain.items() if isinstance(entry, Mapping)}
    if len(entries) < len(by_domain):
        return {key: by_domain}
    inner = dict.fromkeys(name for entry in entries.values() for name in entry)
    return {f"{key}: {name}": {domain: entry.get(name) for domain, entry in entries.items()} for name in inner}


def _text(value: Any) -> str:
    if value is None:
        return UNKNOWN
    if isinstance(value, list):
        return " to ".join(_text(item) for item in value)
    return f"{value:,.4f}" if is_finite_number(value) and isinstance(value, float) else str(value)
