"""The byte n-gram model: probabilities by hand, sums of one, and a memory that reaches its longest history."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from versatune_ds.knowledge.byte_ngram import ngram_bits

TEXTS = st.lists(st.text(alphabet="abc ", max_size=12).map(str.encode), max_size=6)


def probabilities(texts, **options):
    return 2.0 ** -ngram_bits(texts, **options)


def test_without_history_a_byte_has_its_witten_bell_probability():
    found = probabilities([b"a", b"b", b"c", b""], fitted_on=[b"aab"], lengths=(0,))
    # Counted three times, two of them different: (count + 2 / 256) / (3 + 2).
    assert found == pytest.approx([(2 + 2 / 256) / 5, (1 + 2 / 256) / 5, 2 / 256 / 5, 1.0])


def test_a_history_shifts_the_shorter_ones_probability_towards_what_followed_it():
    found = probabilities([b"ab"], fitted_on=[b"aab"], lengths=(0, 1))
    # Every text begins with the history "start": once, followed by "a". "a" is followed by "a" and by "b".
    by_none = {"a": (2 + 2 / 256) / 5, "b": (1 + 2 / 256) / 5}
    assert found == pytest.approx([(1 + 1 * by_none["a"]) / 2 * (1 + 2 * by_none["b"]) / 4])


def test_nothing_fitted_on_gives_eight_bits_a_byte():
    assert ngram_bits([b"abc", b""], fitted_on=[]).tolist() == [24.0, 0.0]


@given(TEXTS, st.text(alphabet="abcx", max_size=40).map(str.encode))
def test_the_probabilities_of_the_next_byte_sum_to_one_and_none_is_zero(fitted_on, history):
    whole = ngram_bits([history, *(history + bytes([byte]) for byte in range(256))], fitted_on=fitted_on)
    next_byte = 2.0 ** (whole[0] - whole[1:])
    assert next_byte.sum() == pytest.approx(1)
    assert next_byte.min() > 0


def test_a_phrase_is_recognised_from_its_first_bytes_and_a_history_ends_with_its_text():
    rng = np.random.default_rng(0)
    phrase = bytes(rng.integers(97, 123, 40).astype(np.uint8))
    noise = [bytes(rng.integers(97, 123, 200).astype(np.uint8)) for _ in range(20)]
    begun, whole = ngram_bits([phrase[:36], phrase], fitted_on=[phrase] * 5 + noise)
    assert (whole - begun) / 4 < 0.5
    joined, apart = ngram_bits([b"ab", b"b"], fitted_on=[b"a", b"b"] * 20, lengths=(0, 1))
    assert joined - apart > 1  # "b" followed nothing but a beginning
