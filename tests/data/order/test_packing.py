"""Rows are filled well, never beyond their length, by a prefix of the draws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from versatune_ds.data.order.packing import order_rows_by_cost, pack_all, pack_prefix


def as_lengths(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def check_rows(lengths: np.ndarray, rows: np.ndarray, offsets: np.ndarray, *, num_rows: int, row_tokens: int) -> None:
    """Check that examples lie side by side from the left in each row."""
    assert ((rows >= 0) & (rows < num_rows)).all()
    for row in range(num_rows):
        inside = np.flatnonzero(rows == row)
        inside = inside[np.argsort(offsets[inside])]
        ends = np.cumsum(lengths[inside])
        assert offsets[inside].tolist() == [0, *ends[:-1].tolist()][: len(inside)]
        assert lengths[inside].sum() <= row_tokens


def test_long_and_short_examples_share_rows():
    rows, offsets = pack_prefix(as_lengths([3, 6, 7, 4]), num_rows=2, row_tokens=10)
    assert rows.tolist() == [0, 1, 0, 1]
    assert offsets.tolist() == [7, 0, 0, 6]


def test_only_a_prefix_is_packed_if_not_all_examples_fit():
    rows, _ = pack_prefix(as_lengths([6, 6, 6, 1]), num_rows=2, row_tokens=10)
    assert rows.tolist() == [0, 1]


def test_an_example_as_long_as_the_row_fills_it():
    rows, offsets = pack_prefix(as_lengths([8, 8]), num_rows=2, row_tokens=8)
    assert (sorted(rows.tolist()), offsets.tolist()) == ([0, 1], [0, 0])


@given(
    lengths=st.lists(st.integers(1, 130), min_size=1, max_size=120),
    num_rows=st.integers(1, 12),
    row_tokens=st.sampled_from([130, 192, 4096, 5000]),
)
def test_a_packed_prefix_is_valid_and_nearly_as_long_as_possible(lengths, num_rows, row_tokens):
    length_n = as_lengths(lengths)
    rows, offsets = pack_prefix(length_n, num_rows=num_rows, row_tokens=row_tokens)
    count = len(rows)
    assert count >= 1
    check_rows(length_n[:count], rows, offsets, num_rows=num_rows, row_tokens=row_tokens)
    if count < len(lengths):
        assert length_n[: count + 1].sum() > num_rows * (row_tokens - 130)


@given(lengths=st.lists(st.integers(1, 100), min_size=0, max_size=200))
def test_packing_without_a_limit_places_every_example(lengths: list[int]):
    length_n = as_lengths(lengths)
    rows, offsets, num_rows = pack_all(length_n, row_tokens=100)
    assert len(rows) == len(lengths)
    check_rows(length_n, rows, offsets, num_rows=num_rows, row_tokens=100)
    assert num_rows <= 1 + 2 * length_n.sum() // 100


@pytest.mark.parametrize(("row_tokens", "least"), [(8192, 0.99), (4096, 0.98)])
def test_examples_of_realistic_lengths_fill_the_rows(row_tokens: int, least: float):
    rng = np.random.default_rng(0)
    fills = []
    for _ in range(40):
        length_n = np.clip(rng.lognormal(5.5, 1.0, 2500), 8, row_tokens).astype(np.int32)
        length_n = length_n[: np.searchsorted(np.cumsum(length_n), 32 * row_tokens)]
        rows, _ = pack_prefix(length_n, num_rows=32, row_tokens=row_tokens)
        fills.append(length_n[: len(rows)].sum() / (32 * row_tokens))
    assert np.mean(fills) > least


def test_rows_are_ordered_by_attention_cost_and_ties_keep_their_order():
    place_R = order_rows_by_cost(np.array([0, 0, 1, 2]), as_lengths([4, 4, 8, 8]), num_rows=4)
    assert place_R.tolist() == [2, 0, 1, 3]
