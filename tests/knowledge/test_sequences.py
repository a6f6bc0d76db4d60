"""Sequences on disk: complete batches only, and which sequences count as empty and repetitive."""

import pytest

from versatune_ds.knowledge.sequences import DrawnSequence, SequenceStore, repeated_share


def drawn(text):
    return DrawnSequence(text=text, num_tokens=3, is_cut=False, repeated_share=0.0)


def test_batches_are_returned_by_number_whatever_order_they_were_added_in(tmp_path):
    store = SequenceStore(tmp_path / "new" / "sequences.jsonl")
    store.add(1, [drawn("c"), drawn("d")])
    store.add(0, [drawn("a"), drawn("b")])
    for found in (store, SequenceStore(store.path)):
        assert [sequence.text for sequence in found.first(3)] == ["a", "b", "c"]
        assert 1 in found
        assert 2 not in found


def test_a_batch_cut_off_by_a_kill_is_dropped_and_the_next_one_is_complete(tmp_path):
    store = SequenceStore(tmp_path / "sequences.jsonl")
    store.add(0, [drawn("a")])
    store.add(1, [drawn("line\nend")])
    store.path.write_bytes(store.path.read_bytes()[:-9])
    again = SequenceStore(store.path)
    assert 0 in again
    assert 1 not in again
    again.add(1, [drawn("b")])
    assert [sequence.text for sequence in SequenceStore(store.path).first(9)] == ["a", "b"]


@pytest.mark.parametrize(
    ("token_ids", "share"),
    [([], 0.0), ([1, 1, 1], 0.0), ([1, 2, 3, 4, 5], 0.0), ([7] * 8, 4 / 5), ([1, 2, 3, 4] * 3, 5 / 9)],
)
def test_repeated_share_counts_runs_of_four_that_came_before(token_ids, share):
    assert repeated_share(token_ids) == pytest.approx(share)


def test_white_space_alone_is_empty_and_a_loop_is_repetitive():
    assert drawn(" \n").is_empty
    assert not drawn("a").is_empty
    loop = DrawnSequence(text="x", num_tokens=9, is_cut=True, repeated_share=0.6)
    assert loop.is_repetitive
