"""Every epoch of a domain visits each example once, in an order of its own."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from versatune_ds.data.order.permutation import domain_key, draw_indices


def one_epoch(key: int, epoch: int, size: int) -> list[int]:
    return draw_indices(key, first_draw=epoch * size, count=size, size=size)[1].tolist()


def test_a_domain_of_one_example_always_gives_that_example():
    epochs, indices = draw_indices(domain_key(0, "law"), first_draw=5, count=3, size=1)
    assert epochs.tolist() == [5, 6, 7]
    assert indices.tolist() == [0, 0, 0]


def test_the_order_is_the_same_in_every_version_and_on_every_machine():
    assert domain_key(7, "law") == 5629205872057381039
    assert one_epoch(domain_key(7, "law"), 0, 8) == [2, 5, 6, 7, 1, 3, 0, 4]
    assert one_epoch(domain_key(7, "law"), 1, 8) == [7, 3, 6, 5, 2, 0, 4, 1]
    assert draw_indices(domain_key(7, "law"), first_draw=0, count=3, size=10**9)[1].tolist() == [
        712359876,
        429683298,
        546832379,
    ]


@given(key=st.integers(0, 2**64 - 1), epoch=st.integers(0, 2**31), size=st.integers(1, 3000))
def test_an_epoch_is_a_bijection(key: int, epoch: int, size: int):
    _, indices = draw_indices(key, first_draw=epoch * size, count=size, size=size)
    assert np.array_equal(np.sort(indices), np.arange(size))


@given(size=st.integers(1, 50), first=st.integers(0, 500), count=st.integers(0, 200))
def test_consecutive_draws_equal_single_draws(size: int, first: int, count: int):
    epochs, indices = draw_indices(3, first_draw=first, count=count, size=size)
    for draw, epoch, index in zip(range(first, first + count), epochs, indices, strict=True):
        assert epoch == draw // size
        assert index == draw_indices(3, first_draw=draw, count=1, size=size)[1][0]


@pytest.mark.parametrize("size", [3, 4, 5])
def test_all_permutations_of_a_tiny_domain_are_equally_frequent(size: int):
    num_epochs = 20_000
    _, indices = draw_indices(domain_key(3, "x"), first_draw=0, count=size * num_epochs, size=size)
    seen = Counter(map(tuple, indices.reshape(num_epochs, size).tolist()))
    num_permutations = math.factorial(size)
    expected = num_epochs / num_permutations
    assert len(seen) == num_permutations
    chi_square = sum((count - expected) ** 2 / expected for count in seen.values())
    assert chi_square < num_permutations + 4 * math.sqrt(2 * num_permutations)


def test_neighbouring_draws_of_a_large_domain_are_uncorrelated():
    size = 1_000_003
    _, indices = draw_indices(domain_key(3, "x"), first_draw=0, count=size, size=size)
    assert abs(np.corrcoef(indices[:-1], indices[1:])[0, 1]) < 0.005
    assert abs(np.corrcoef(np.arange(size), indices)[0, 1]) < 0.005


def test_the_key_depends_only_on_seed_and_domain_name():
    assert domain_key(1, "law") == domain_key(1, "law")
    assert len({domain_key(1, "law"), domain_key(2, "law"), domain_key(1, "code"), domain_key(11, "aw")}) == 4


def test_a_draw_from_an_empty_domain_is_refused():
    with pytest.raises(ValueError, match="expected a size of 1 or more"):
        draw_indices(1, first_draw=0, count=1, size=0)
