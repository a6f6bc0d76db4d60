"""The encoder's output lines of a batch as arrays, so that nothing is done line by line in Python.

One process divides the lines of all encoding processes among the splits; work per line would make the others wait.

Shape legend: **L** output lines of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from versatune_ds.data.prepare.shard_writer import Examples


@dataclass(frozen=True, slots=True, kw_only=True)
class Lines:
    """The output lines of a batch (`encode_records.OUTPUT_SCHEMA`)."""

    file: np.ndarray
    line: np.ndarray
    piece: np.ndarray
    content_hash: np.ndarray
    num_row_tokens: np.ndarray
    num_cut_tokens: np.ndarray
    num_tokens: np.ndarray
    is_bad: np.ndarray
    """bool [L], bad rows."""
    input_ids: pa.ListArray
    loss_spans: pa.ListArray
    problem: pa.StringArray
    unread: pa.ListArray
    """Columns of each line's record whose text is not trained on."""
    unread_labels: pa.ListArray
    warnings: pa.ListArray
    """Keys of `data_warnings.DATA_WARNINGS` for each line's record."""

    @classmethod
    def from_batch(cls, batch: pa.RecordBatch) -> Lines:
        """Return the lines of a record batch, without copying numbers."""
        numbers = ("file", "line", "piece", "content_hash", "num_row_tokens", "num_cut_tokens")
        columns = ("input_ids", "loss_spans", "problem", "unread", "unread_labels", "warnings")
        return cls(
            num_tokens=np.diff(batch.column("input_ids").offsets.to_numpy()),
            is_bad=pc.not_equal(batch.column("problem"), "").to_numpy(zero_copy_only=False),
            **{name: batch.column(name).to_numpy() for name in numbers},
            **{name: batch.column(name) for name in columns},
        )

    def examples(self, is_selected_L: np.ndarray) -> Examples:
        """Return the lines that a mask selects as examples; views if it selects all."""
        tokens, spans, hashes = self.input_ids, self.loss_spans, self.content_hash
        if not is_selected_L.all():
            mask = pa.array(is_selected_L)
            tokens, spans, hashes = tokens.filter(mask), spans.filter(mask), hashes[is_selected_L]
        return Examples(
            tokens=tokens.values.to_numpy(),
            token_offsets=tokens.offsets.to_numpy(),
            spans=spans.values.to_numpy(),
            span_offsets=spans.offsets.to_numpy(),
            content_hash=hashes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NameCount:
    """A name in a column of lists: how often, and the position of the first line with it."""

    name: str
    num_lines: int
    first_line: int


def name_counts(column: pa.ListArray, *, is_selected_L: np.ndarray) -> list[NameCount]:
    """Count the names in the lists that a mask selects; those that come first are first."""
    lines = pc.list_parent_indices(column).to_numpy()
    is_selected = is_selected_L[lines]
    if not is_selected.any():
        return []
    encoded = column.flatten().dictionary_encode()
    lines, codes = lines[is_selected], encoded.indices.to_numpy()[is_selected]
    found, first, counts = np.unique(codes, return_index=True, return_counts=True)
    return [
        NameCount(
            name=encoded.dictionary[int(found[i])].as_py(),
            num_lines=int(counts[i]),
            first_line=int(lines[first[i]]),
        )
        for i in np.argsort(first).tolist()
    ]
