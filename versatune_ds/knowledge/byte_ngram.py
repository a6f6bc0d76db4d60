"""A byte n-gram model: how well a text is predicted from its spelling, frequent words and stock phrases alone.

It predicts each byte from the bytes before it. Interpolation (Witten and Bell): with h the last n bytes, c(h) how often
they were followed by something, T(h) by how many different bytes,

    p_n(x | h) = (c(h, x) + T(h) p_m(x | last m bytes of h)) / (c(h) + T(h)),    p(x) = 1 / 256 before any history,

where m is the next smaller length. So no byte has probability 0, and a history that was never seen changes nothing.
Histories reach up to 32 bytes: rows written from one pattern repeat phrases that long, and a shorter memory would count
the pattern as knowledge (measured in benchmarks/results/detect.md).

Source: Witten, Bell 1991, method C, interpolated as in Chen, Goodman 1998, section 2.4.
Approximate: histories are compared by 64-bit hashes; among a million, two are confused once in 30 million fits.

Worked example: fitted on "aab", length 0 alone: c = 3, T = 2, so p(a) = (2 + 2/256) / 5 and p(b) = (1 + 2/256) / 5.

Shape legend: **N** bytes of all texts, **P** different histories with their next byte, **H** different histories.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

LENGTHS = (0, 1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32)
"""Bytes of the histories, each more specific than the one before."""

_START = 256  # what comes before a text's first byte
_NUM_SYMBOLS = np.uint64(257)  # odd, so multiplying by it loses nothing modulo 2^64
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def ngram_bits(texts: Sequence[bytes], *, fitted_on: Sequence[bytes], lengths: Sequence[int] = LENGTHS) -> np.ndarray:
    """Return -log2 of the probability of each text under the n-gram model of other texts; 0 for an empty one.

    The counts of one length are forgotten before the next: a megabyte of text needs 100 MB and some seconds.

    Args:
        texts: What is predicted.
        fitted_on: Texts whose bytes are counted; a history does not reach beyond the beginning of its text.
        lengths: Bytes of the histories, rising.

    Returns:
        float64 [texts], bits.
    """
    probability_N = np.full(sum(map(len, texts)), 1.0 / 256)
    for counted_N, seen_N in zip(_histories(fitted_on, lengths), _histories(texts, lengths), strict=True):
        probability_N = _interpolated(probability_N, counted=counted_N, seen=seen_N)
    ends = np.cumsum([0, *map(len, texts)])
    bits_before = np.concatenate([[0.0], np.cumsum(-np.log2(probability_N))])
    return bits_before[ends[1:]] - bits_before[ends[:-1]]


def _interpolated(
    probability_N: np.ndarray, *, counted: tuple[np.ndarray, np.ndarray], seen: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Return the probabilities of bytes [N] given histories of the next length, from those of the length before.

    Args:
        probability_N: By the shorter histories.
        counted: History, and next byte, of every byte fitted on.
        seen: History, and next byte, of every byte predicted.
    """
    pairs_P, first_P, counts_P = np.unique(_pairs(*counted), return_index=True, return_counts=True)
    histories_H, places_P, num_next_H = np.unique(counted[0][first_P], return_inverse=True, return_counts=True)
    total_H = np.bincount(places_P, weights=counts_P, minlength=len(histories_H))
    count_N = _looked_up(_pairs(*seen), pairs_P, counts_P)
    total_N, num_next_N = (_looked_up(seen[0], histories_H, values_H) for values_H in (total_H, num_next_H))
    weighted_N = (count_N + num_next_N * probability_N) / np.maximum(total_N + num_next_N, 1)
    return np.where(total_N > 0, weighted_N, probability_N)


def _histories(texts: Sequence[bytes], lengths: Sequence[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield, for each length, the history of every byte and the byte: uint64 [N], and uint64 [N].

    The hash of a history is the sum of (its byte j places back + 1) times the multiplier^j, modulo 2^64. So each length
    adds terms to the one before.
    """
    padding = np.full(max(lengths), _START, dtype=np.uint64)
    parts = [part for text in texts for part in (padding, np.frombuffer(text, dtype=np.uint8).astype(np.uint64))]
    symbols = np.concatenate([padding[:0], *parts])
    is_byte = symbols != _START
    hashes, factor = np.zeros(len(symbols), dtype=np.uint64), np.uint64(1)
    for length in range(max(lengths) + 1):
        if length:
            with np.errstate(over="ignore"):
                factor = factor * _MULTIPLIER
            hashes[length:] += (symbols[:-length] + np.uint64(1)) * factor
        if length in lengths:
            yield hashes[is_byte], symbols[is_byte]


def _pairs(history_N: np.ndarray, next_N: np.ndarray) -> np.ndarray:
    return history_N * _NUM_SYMBOLS + next_N


def _looked_up(keys_N: np.ndarray, known_P: np.ndarray, values_P: np.ndarray) -> np.ndarray:
    """Return the value of each key, 0 where it is not known; `known_P` is rising."""
    if not len(known_P):
        return np.zeros(len(keys_N))
    places_N = np.minimum(np.searchsorted(known_P, keys_N), len(known_P) - 1)
    return np.where(known_P[places_N] == keys_N, values_P[places_N], 0)
