"""Pack examples into rows of equal length.

Only lengths matter, so every rank packs the entire global batch in milliseconds. A batch is the longest prefix of the
draws that fits into its rows. Nothing is stored for later: an example that does not fit counts as not drawn, so the
state of a run is only counters.

Best fit decreasing: examples from long to short, each into the fullest row with enough room. Rows are indexed by the
room they have left, in a bit set of `row_tokens + 1` bits, so finding the least room >= length reads two or three
machine words, whatever the number of rows.

Not covered: an optimal packing. Measured fill is in benchmarks/results/data_plane.md.

Shape legend: **n** examples in drawing order, **R** rows, **C** = row_tokens + 1 amounts of room.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

CLOSE_ENOUGH = 1000
"""The search for the longest prefix stops when prefixes differ by less than 1/1000 of the batch."""

_DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
_BIT_OF_PRODUCT = np.zeros(64, dtype=np.int64)
for _bit in range(64):
    _BIT_OF_PRODUCT[((0x03F79D71B4CB0A89 << _bit) & (2**64 - 1)) >> 58] = _bit

_ONE = np.uint64(1)
_ALL = np.uint64(2**64 - 1)


@njit(cache=True, nogil=True)
def stable_order(key_n: np.ndarray, num_keys: int) -> np.ndarray:
    """Return the positions of integers in 0..num_keys-1 by rising value, equal ones in their order, int64 [n].

    A counting sort: 200,000 small integers take about a millisecond, a comparison sort takes twenty.
    Example: keys 2 0 2 1 give 1 3 0 2.
    """
    start = np.zeros(num_keys + 1, np.int64)
    for key in key_n:
        start[key + 1] += 1
    for key in range(num_keys):
        start[key + 1] += start[key]
    order_n = np.empty(len(key_n), np.int64)
    for i in range(len(key_n)):
        order_n[start[key_n[i]]] = i
        start[key_n[i]] += 1
    return order_n


class _Rooms(NamedTuple):
    """Rows by the room they have left: a stack for every amount of room, and a bit set of the stacks with rows."""

    top_C: np.ndarray
    """int64, row on top of each stack, -1 for an empty one."""
    below_R: np.ndarray
    """int64, row beneath each row in its stack, -1 for none."""
    words: np.ndarray
    """uint64, bit c of the set is bit c % 64 of word c // 64."""
    words_of_words: np.ndarray
    """uint64, bit w is set if word w has a set bit."""


@njit(cache=True, nogil=True)
def _lowest_bit(word: np.uint64) -> int:
    return _BIT_OF_PRODUCT[((word & (~word + _ONE)) * _DE_BRUIJN) >> np.uint64(58)]


@njit(cache=True, nogil=True)
def _push(rooms: _Rooms, row: int, room: int) -> None:
    rooms.below_R[row] = rooms.top_C[room]
    rooms.top_C[room] = row
    word = room >> 6
    rooms.words[word] |= _ONE << np.uint64(room & 63)
    rooms.words_of_words[word >> 6] |= _ONE << np.uint64(word & 63)


@njit(cache=True, nogil=True)
def _pop(rooms: _Rooms, room: int) -> int:
    """Remove and return the row on top of a stack that is not empty."""
    row = rooms.top_C[room]
    rooms.top_C[room] = rooms.below_R[row]
    if rooms.top_C[room] < 0:
        word = room >> 6
        rooms.words[word] &= ~(_ONE << np.uint64(room & 63))
        if rooms.words[word] == 0:
            rooms.words_of_words[word >> 6] &= ~(_ONE << np.uint64(word & 63))
    return row


@njit(cache=True, nogil=True)
def _least_room(rooms: _Rooms, length: int) -> int:
    """Return the least room that is at least `length`, or -1 if no row has enough."""
    # The rest of the word in which `length` is.
    word = length >> 6
    rest = rooms.words[word] & (_ALL << np.uint64(length & 63))
    if rest != 0:
        return (word << 6) + _lowest_bit(rest)
    # The next word with a set bit, by the set of words.
    word += 1
    group = word >> 6
    if group >= len(rooms.words_of_words):
        return -1
    rest = rooms.words_of_words[group] & (_ALL << np.uint64(word & 63))
    while rest == 0:
        group += 1
        if group == len(rooms.words_of_words):
            return -1
        rest = rooms.words_of_words[group]
    word = (group << 6) + _lowest_bit(rest)
    return (word << 6) + _lowest_bit(rooms.words[word])


def _empty_rows(num_rows: int, row_tokens: int) -> _Rooms:
    """Return empty rows: all are on the stack of full room, row 0 on top."""
    num_words = (row_tokens >> 6) + 1
    rooms = _Rooms(
        top_C=np.full(row_tokens + 1, -1, dtype=np.int64),
        below_R=np.arange(1, num_rows + 1),
        words=np.zeros(num_words, dtype=np.uint64),
        words_of_words=np.zeros((num_words >> 6) + 1, dtype=np.uint64),
    )
    rooms.below_R[-1] = -1
    rooms.top_C[row_tokens] = 0
    rooms.words[row_tokens >> 6] = 1 << (row_tokens & 63)
    rooms.words_of_words[row_tokens >> 12] = 1 << (row_tokens >> 6 & 63)
    return rooms


@njit(cache=True, nogil=True)
def _fill_rows(
    rooms: _Rooms, order_n: np.ndarray, length_n: np.ndarray, row_n: np.ndarray, offset_n: np.ndarray
) -> int:
    """Put each example, in the given order, into the fullest row with room; return the tokens that did not fit."""
    row_tokens = len(rooms.top_C) - 1
    unplaced = 0
    for i in order_n:
        length = length_n[i]
        room = _least_room(rooms, length)
        if room < 0:
            unplaced += length
            continue
        row = _pop(rooms, room)
        row_n[i] = row
        offset_n[i] = row_tokens - room
        _push(rooms, row, room - length)
    return unplaced


class _BestFit:
    """Pack prefixes of one sequence, each from scratch; `row_n` and `offset_n` are the places of the last one."""

    def __init__(self, length_n: np.ndarray, row_tokens: int) -> None:
        self.row_n = np.zeros(len(length_n), dtype=np.int64)
        self.offset_n = np.zeros(len(length_n), dtype=np.int64)
        self._length_n, self._row_tokens = length_n, row_tokens

    def pack(self, count: int, num_rows: int) -> int:
        """Pack the first `count` examples into a number of rows; return the tokens that did not fit."""
        length_n = self._length_n[:count]
        from_long_to_short = stable_order(self._row_tokens - length_n, self._row_tokens)
        rooms = _empty_rows(num_rows, self._row_tokens)
        return int(_fill_rows(rooms, from_long_to_short, length_n, self.row_n, self.offset_n))


def pack_prefix(length_n: np.ndarray, *, num_rows: int, row_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Pack the longest prefix of a sequence of examples that fits into rows.

    Start with as many tokens as the rows have room for (a little less in a large batch, which usually fits at once).
    Shorten the prefix by the tokens that did not fit until all do. Then search between it and the shortest prefix that
    failed, by bisection, until they differ by less than 1/1000 of the batch.

    Args:
        length_n: int32 [n], tokens of each example in drawing order, each in 1..row_tokens.
        num_rows: Rows to fill.
        row_tokens: Tokens that fit in a row.

    Returns:
        row and offset (token at which the example begins) of the examples of the prefix, int64; their length is the
        length of the prefix. It is the longest that best fit can pack, to within 1/1000 of the batch.
    """
    # A first guess, shortened until it fits.
    num_tokens = num_rows * row_tokens
    tokens_n = np.cumsum(length_n, dtype=np.int64)
    slack = num_tokens // (2 * CLOSE_ENOUGH) if num_rows > 2 * CLOSE_ENOUGH else 0
    fits, fails = int(np.searchsorted(tokens_n, num_tokens - slack, side="right")), len(length_n) + 1
    best_fit = _BestFit(length_n, row_tokens)
    while unplaced := best_fit.pack(fits, num_rows):
        fails, fits = fits, int(np.searchsorted(tokens_n, tokens_n[fits - 1] - unplaced, side="right"))
    # Bisection.
    packed = fits
    while fails - fits > 1 and (tokens_n[fails - 2] - tokens_n[fits - 1]) * CLOSE_ENOUGH > num_tokens:
        packed = (fits + fails) // 2
        if best_fit.pack(packed, num_rows):
            fails = packed
        else:
            fits = packed
    if packed != fits:  # the last prefix tried did not fit
        best_fit.pack(fits, num_rows)
    return best_fit.row_n[:fits], best_fit.offset_n[:fits]


def pack_all(length_n: np.ndarray, *, row_tokens: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Pack all examples into as few rows as best fit needs.

    Returns:
        row and offset of each example, int64 [n], and the number of rows.
    """
    num_rows = max(-(-int(length_n.sum(dtype=np.int64)) // row_tokens), 1)
    best_fit = _BestFit(length_n, row_tokens)
    while unplaced := best_fit.pack(len(length_n), num_rows):
        num_rows += -(-unplaced // row_tokens)
    return best_fit.row_n, best_fit.offset_n, num_rows if len(length_n) else 0


def order_rows_by_cost(row_n: np.ndarray, length_n: np.ndarray, *, num_rows: int) -> np.ndarray:
    """Return the new place of each row when rows are ordered by attention cost, the sum of squared lengths.

    Full rows have the same number of tokens but not the same attention: one example of 8192 costs 16 times as much as
    sixteen of 512. Rows of one micro-step are neighbours, so that its ranks finish together. Ties keep their order.

    Returns:
        int64 [R]: row r moves to place [r].
    """
    cost_R = np.bincount(row_n, weights=length_n.astype(np.float64) ** 2, minlength=num_rows)
    place_R = np.empty(num_rows, dtype=np.int64)
    place_R[np.argsort(-cost_R, kind="stable")] = np.arange(num_rows)
    return place_R


def order_by_place(row_n: np.ndarray, offset_n: np.ndarray, *, num_rows: int, row_tokens: int) -> np.ndarray:
    """Return the positions of examples sorted by row, then by offset, int64 [n]."""
    by_offset = stable_order(offset_n, row_tokens)
    return by_offset[stable_order(row_n[by_offset], num_rows)]
