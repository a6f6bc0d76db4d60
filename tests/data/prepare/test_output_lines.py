"""The output lines of a batch are divided and counted as if each were handled alone."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from versatune_ds.data.prepare.encode_records import OUTPUT_SCHEMA
from versatune_ds.data.prepare.output_lines import Lines, name_counts
from versatune_ds.data.prepare.shard_writer import Examples

_LINE = st.fixed_dictionaries(
    {
        "input_ids": st.lists(st.integers(0, 99), max_size=5),
        "loss_spans": st.lists(st.sampled_from([(1, 3), (4, 5), (2, 2)]), max_size=3).map(lambda s: [*sum(s, ())]),
        "warnings": st.lists(st.sampled_from("abc"), max_size=3),
        "is_selected": st.booleans(),
    }
)


def lines_of(rows):
    """Return lines with the given columns; the others are zero or empty."""
    empty = {field.name: [] if pa.types.is_list(field.type) else 0 for field in OUTPUT_SCHEMA} | {"problem": ""}
    full = [{**empty, **row, "content_hash": number} for number, row in enumerate(rows)]
    return Lines.from_batch(pa.RecordBatch.from_pylist(full, schema=OUTPUT_SCHEMA))


def test_the_loss_tokens_of_each_example_are_the_lengths_of_its_spans():
    examples = Examples(
        tokens=np.arange(20),
        token_offsets=np.array([0, 10, 10, 20]),
        spans=np.array([2, 5, 1, 2, 4, 6]),
        span_offsets=np.array([0, 2, 2, 6]),
        content_hash=np.zeros(3, dtype=np.uint64),
    )
    assert examples.num_loss_tokens.tolist() == [3, 0, 3]
    assert examples.between(1, 3).num_loss_tokens.tolist() == [0, 3]


def test_names_are_counted_in_the_order_in_which_they_come():
    lines = lines_of([{"warnings": ["x"]}, {"warnings": []}, {"warnings": ["b", "a"]}, {"warnings": ["a"]}])
    counts = name_counts(lines.warnings, is_selected_L=np.array([False, True, True, True]))
    assert [(count.name, count.num_lines, count.first_line) for count in counts] == [("b", 1, 2), ("a", 2, 2)]


@given(st.lists(_LINE, max_size=12))
def test_selected_lines_become_the_same_examples_as_one_by_one(rows):
    lines = lines_of(rows)
    selected = [number for number, row in enumerate(rows) if row["is_selected"]]
    examples = lines.examples(np.array([row["is_selected"] for row in rows], dtype=np.bool_))
    found = [examples.between(i, i + 1) for i in range(len(examples))]
    assert examples.content_hash.tolist() == selected
    for number, example in zip(selected, found, strict=True):
        (start, end), (first, last) = example.token_offsets, example.span_offsets
        spans = rows[number]["loss_spans"]
        assert example.tokens[start:end].tolist() == rows[number]["input_ids"]
        assert example.spans[first:last].tolist() == spans
        assert example.num_loss_tokens.tolist() == [sum(spans[1::2]) - sum(spans[::2])]
