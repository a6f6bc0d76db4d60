"""Whether an example is held out depends on its content alone."""

from __future__ import annotations

import numpy as np
from chat_data import chat_row, chat_rows, write_domains, write_jsonl
from hypothesis import given
from hypothesis import strategies as st
from prepare_data import prepare_folder, prepare_without_valid, texts_of

from versatune_ds.data.prepare.one_domain import is_held_out_by_hash


def test_held_out_examples_do_not_change_with_order_or_with_more_records(tmp_path):
    rows = chat_rows(300)
    few = prepare_without_valid(tmp_path / "few", rows[:150])
    many = prepare_without_valid(tmp_path / "many", rows[::-1])
    assert set(texts_of(few.valid[0])) <= set(texts_of(many.valid[0]))
    assert not set(texts_of(many.valid[0])) & set(texts_of(many.train[0]))
    assert 300 * 0.1 < len(many.valid[0]) < 300 * 0.3


def test_examples_that_differ_only_in_spaces_and_case_are_in_the_same_split(tmp_path):
    rows = chat_rows(100) + [chat_row(f" SUM: what is  {i} plus {i}?", f"it IS {2 * i}. ") for i in range(100)]
    prepared = prepare_without_valid(tmp_path, rows)
    hashes = [set(shards.content_hashes.tolist()) for shards in (prepared.train[0], prepared.valid[0])]
    assert not hashes[0] & hashes[1]
    assert [counts.num_duplicates * 2 for counts in prepared.counts] == [counts.num_rows for counts in prepared.counts]


@given(st.integers(0, 2**64 - 1), st.floats(0.001, 0.499), st.floats(0.001, 0.499))
def test_a_larger_fraction_holds_out_the_same_examples_and_more(content_hash, one, other):
    hashes = np.array([content_hash], dtype=np.uint64)
    small, large = (is_held_out_by_hash(hashes, fraction=fraction)[0] for fraction in sorted((one, other)))
    assert large or not small


def test_held_out_examples_that_are_trained_on_are_counted_and_logged(tmp_path, caplog):
    folder = write_domains(tmp_path / "data", num_rows=5, domains=["law"])
    write_jsonl(folder / "valid" / "law.jsonl", chat_rows(8, topic="LAW"))
    assert prepare_folder(folder).counts[1].num_in_train == 5
    assert "law: 5 of 8 held-out rows are also trained on" in caplog.text
