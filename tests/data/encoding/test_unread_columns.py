"""Unread columns are counted over rows and listed in one line."""

from __future__ import annotations

from versatune_ds.data.encoding.unread_columns import UnreadColumn, UnreadCounter, describe_labels, describe_text


def test_rows_are_counted_and_the_first_is_named():
    counter = UnreadCounter()
    for line in (3, 5):
        counter.add(["hint"], is_label=False, place=f"a.jsonl:{line}")
    counter.add(["id", "hint"], is_label=True, place="a.jsonl:7")
    hint, name = counter.columns()
    assert hint == UnreadColumn(name="hint", num_rows=3, place="a.jsonl:3", is_label=False)
    assert name == UnreadColumn(name="id", num_rows=1, place="a.jsonl:7", is_label=True)
    assert describe_text([hint, name]) == "hint (3 rows, first a.jsonl:3)"
    assert describe_labels([hint, name]) == "id"


def test_many_names_and_names_that_steer_a_terminal_stay_short():
    columns = [UnreadColumn(name=f"c{i}", num_rows=1, place="a:1", is_label=True) for i in range(15)]
    assert describe_labels(columns).endswith("c11 and 3 more")
    evil = UnreadColumn(name="\x1b[2J" + "x" * 100, num_rows=1, place="a:1", is_label=True)
    assert describe_labels([evil]) == "\\x1b[2J" + "x" * 53 + "..."
    assert describe_text(columns) == ""
