"""Build one split of one domain: examples go into shards, everything is counted and shown as a table.

A record is counted at its first output line (piece 0); every line with tokens is an example. Counts and table call a
record a row, as the key `data.max_bad_rows` does.

Shape legend: **L** output lines of a batch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from versatune_ds.data.prepare.content_hashes import ContentHashes
from versatune_ds.data.prepare.output_lines import Lines, name_counts
from versatune_ds.data.prepare.shard_writer import ShardWriter
from versatune_ds.data.sources.records import printable
from versatune_ds.text_table import is_fitted, text_table


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


class SplitBuilder:
    """Write the shards of one split, and count its records."""

    def __init__(self, folder: Path, *, max_tokens: int) -> None:
        """Open a shard writer in a new folder; no example may be longer than `max_tokens`."""
        folder.mkdir()
        self._writer = ShardWriter(folder, max_tokens=max_tokens)
        self._counts = Counter(num_rows=0, num_bad_rows=0, num_without_loss=0, num_long_rows=0, num_cut_tokens=0)
        self._max_tokens = max_tokens
        self._warnings: Counter[str] = Counter()
        self.content_hashes = ContentHashes(folder / ".hashes")

    def add(self, lines: Lines, *, is_selected_L: np.ndarray) -> None:
        """Add the lines that a mask selects."""
        # Count the records.
        num_tokens_L = lines.num_tokens
        is_row_L = is_selected_L & (lines.piece == 0)
        is_kept_L = is_row_L & (num_tokens_L > 0)
        self._counts.update(
            num_rows=int(is_row_L.sum()),
            num_bad_rows=int((is_row_L & lines.is_bad).sum()),
            num_without_loss=int((is_row_L & ~lines.is_bad & (num_tokens_L == 0)).sum()),
            num_long_rows=int((lines.num_row_tokens[is_row_L] > self._max_tokens).sum()),
            num_cut_tokens=int(lines.num_cut_tokens[is_row_L].sum()),
        )
        for counted in name_counts(lines.warnings, is_selected_L=is_kept_L):
            self._warnings[counted.name] += counted.num_lines
        self.content_hashes.add(lines.content_hash[is_kept_L])
        # Write the examples.
        self._writer.add_many(lines.examples(is_selected_L & (num_tokens_L > 0)))

    def close(self, *, domain: str, split: str, num_files: int, settings: dict[str, Any]) -> SplitCounts:
        """Finish the shards and return the counts."""
        manifest = self._writer.close(domain=domain, split=split, settings=settings)
        return SplitCounts(
            domain=domain,
            split=split,
            num_files=num_files,
            num_examples=manifest.num_examples,
            num_tokens=manifest.num_tokens,
            num_loss_tokens=manifest.num_loss_tokens,
            longest_tokens=manifest.longest_tokens,
            num_duplicates=self.content_hashes.num_duplicates(),
            remarks=dict(self._warnings),
            **self._counts,
        )

    def num_in_train(self, train: SplitBuilder) -> int:
        """Return how many of the split's records have a content that is in another split; call it once at the end.

        The hashes of both that were written to disk are deleted.
        """
        num_in_train = self.content_hashes.num_in(train.content_hashes)
        self.content_hashes.delete()
        train.content_hashes.delete()
        return num_in_train


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
_FAULTS = ("num_bad_rows", "num_without_loss", "num_long_rows", "num_cut_tokens", "num_duplicates", "num_in_train")
_NOTES = {
    "num_duplicates": "rows with the content of an earlier row of the same split; they are kept",
    "num_in_train": "held-out rows that the domain trains on too; its loss looks better than it is",
}


def format_table(rows: Sequence[SplitCounts]) -> str:
    """Return the counts as aligned text, one line per split, with notes on duplicates if there are any.

    On a terminal, faults that no domain has get no column.
    """
    names = [name for name in _HEADINGS if not (is_fitted() and name in _FAULTS) or any(getattr(r, name) for r in rows)]
    cells = [[_cell(getattr(row, name)) for name in names] for row in rows]
    notes = [f"{_HEADINGS[name]}: {meaning}" for name, meaning in _NOTES.items() if any(getattr(r, name) for r in rows)]
    return "\n".join([text_table([_HEADINGS[name] for name in names], cells, num_left=2), *notes])


def _cell(value: str | int) -> str:
    return f"{value:,}" if isinstance(value, int) else printable(value)
