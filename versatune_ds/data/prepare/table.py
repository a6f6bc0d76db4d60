"""Count the rows of each split, and show the counts as a table.

A row is a record of the files here, as in the key `data.max_bad_rows`. The table shows how many are bad, cut, without
loss, duplicates, or held out and also trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from versatune_ds.text_table import text_table


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitCounts:
    """Counts of one split of one domain; the fields are keys of a domain's summary.json."""

    domain: str
    split: str
    num_files: int
    num_rows: int
    """Rows read, bad ones included; rows held out by hash count under `valid`."""
    num_bad_rows: int
    num_without_loss: int
    """Rows dropped because none of their tokens bears loss (for example an answer that is cut off completely)."""
    num_examples: int
    num_tokens: int
    num_loss_tokens: int
    longest_tokens: int
    num_long_rows: int
    """Rows longer than `row_tokens`: truncated, or split, as `data.long_examples` says."""
    num_cut_tokens: int
    """Tokens that truncation cut off."""
    num_duplicates: int
    """Rows with the content of an earlier row of the split, apart from white space and letter case; they are kept."""
    num_in_train: int = 0
    """Held-out rows whose content is also trained on in the same domain."""
    remarks: dict[str, int] = field(default_factory=dict)
    """Rows of each warning, by the keys of `data_warnings.DATA_WARNINGS`; they are logged, not in the table."""


_HEADINGS = {
    "domain": "domain",
    "split": "split",
    "num_files": "files",
    "num_rows": "rows",
    "num_bad_rows": "bad rows",
    "num_without_loss": "no loss",
    "num_examples": "examples",
    "num_tokens": "tokens",
    "num_loss_tokens": "loss tokens",
    "longest_tokens": "longest",
    "num_long_rows": "long rows",
    "num_cut_tokens": "tokens cut",
    "num_duplicates": "duplicates",
    "num_in_train": "in train",
}
assert set(_HEADINGS) == {entry.name for entry in fields(SplitCounts)} - {"remarks"}
_NOTES = {
    "num_duplicates": "rows with the content of an earlier row of the same split; they are kept",
    "num_in_train": "held-out rows that the domain trains on too; its loss looks better than it is",
}


def format_table(rows: Sequence[SplitCounts]) -> str:
    """Return the counts as aligned text, one line per split, with notes on duplicates if there are any."""
    cells = [[_cell(getattr(row, name)) for name in _HEADINGS] for row in rows]
    notes = [f"{_HEADINGS[name]}: {meaning}" for name, meaning in _NOTES.items() if any(getattr(r, name) for r in rows)]
    return "\n".join([text_table(list(_HEADINGS.values()), cells, num_left=2), *notes])


def _cell(value: str | int) -> str:
    """Return a value as shown in the table; control characters of names are escaped."""
    if isinstance(value, int):
        return f"{value:,}"
    return value if value.isprintable() else value.encode("unicode_escape").decode("ascii")
