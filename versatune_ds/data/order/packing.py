"""Pack examples into rows of equal length.

The one idea: only lengths matter, so the whole global batch can be packed at once on every rank in milliseconds, and a
batch takes the longest prefix of the draw sequence that packs into its rows. Nothing is put aside for later: what
does not fit was not drawn, so the state of a run stays a handful of counters.

Best fit decreasing: examples from long to short, each into the fullest row that still holds it. Rows are kept by the
room they have left, in a bit set of `row_tokens + 1` bits; "the least room >= length" is two or three machine words
away, whatever the number of rows.

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
    """Rows by the room they have left: a stack for every amount of room, and the set of those that are not empty."""

    top_C: np.ndarray
    """int64, row on top of each stack, -1 for an empty one."""
    below_R: np.ndarray
    """int64, row beneath each row in its stack, -1 for none."""
    words: np.ndarray
    """uint64, bit c of the set is bit c % 64 of word c // 64."""
    words_of_words: np.ndarray
    """uint64, bit w tells whether word w has a bit."""


@njit(cache=True, nogil=True)
def _lowest_bit(word: np.uint64) -> int:
    """Return the position of the lowest bit of a word that has one."""
    return _BIT_OF_PRODUCT[((word & (~word + _ONE)) * _DE_BRUIJN) >> np.uint64(58)]


@njit(cache=True, nogil=True)
def _push(rooms: _Rooms, row: int, room: int) -> None:
    """Put a row on the stack of its room."""
    rooms.below_R[row] = rooms.top_C[room]
    rooms.top_C[room] = row
    word = room >> 6
    rooms.words[word] |= _ONE << np.uint64(room & 63)
    rooms.words_of_words[word >> 6] |= _ONE << np.uint64(word & 63)


@njit(cache=True, nogil=True)
def _pop(rooms: _Rooms, room: int) -> int:
    """Take the row on top of a stack that is not empty."""
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
    """Return the least room that is at least `length`, or -1."""
    word = length >> 6
    rest = rooms.words[word] & (_ALL << np.uint64(length & 63))
    if rest != 0:
        return (word << 6) + _lowest_bit(rest)
    word += 1  # the first word not looked at yet
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
    """Return empty rows: all on the stack of full room, row 0 on top."""
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
    """Put examples, in the order given, into the fullest row that holds them; return the tokens that found no room."""
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
    """Pack prefixes of one sequence, each from the beginning; `row_n` and `offset_n` hold the last one's places."""

    def __init__(self, length_n: np.ndarray, row_tokens: int) -> None:
        self.row_n = np.zeros(len(length_n), dtype=np.int64)
        self.offset_n = np.zeros(len(length_n), dtype=np.int64)
        self._length_n, self._row_tokens = length_n, row_tokens

    def pack(self, count: int, num_rows: int) -> int:
        """Pack the first `count` examples into a number of rows; return the tokens that found no room."""
        length_n = self._length_n[:count]
        from_long_to_short = stable_order(self._row_tokens - length_n, self._row_tokens)
        rooms = _empty_rows(num_rows, self._row_tokens)
        return int(_fill_rows(rooms, from_long_to_short, length_n, self.row_n, self.offset_n))


def pack_prefix(length_n: np.ndarray, *, num_rows: int, row_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Pack a long prefix of a sequence of examples into rows.

    Begin with what the rows could hold, in a large batch a little less, which packs at once; shorten by what found no
    room until all do; then halve the gap to the shortest prefix that failed, as long as it matters.

    Args:
        length_n: int32 [n], tokens of each example in drawing order, each in 1..row_tokens.
        num_rows: Rows to fill.
        row_tokens: Tokens a row holds.

    Returns:
        row and offset (token at which the example begins) of the examples of the prefix, int64; their length tells
        how many examples the prefix has. It is the longest that packs, up to 1/1000 of the batch and to best fit.
    """
    num_tokens = num_rows * row_tokens
    tokens_n = np.cumsum(length_n, dtype=np.int64)
    slack = num_tokens // (2 * CLOSE_ENOUGH) if num_rows > 2 * CLOSE_ENOUGH else 0
    fits, fails = int(np.searchsorted(tokens_n, num_tokens - slack, side="right")), len(length_n) + 1
    best_fit = _BestFit(length_n, row_tokens)
    while unplaced := best_fit.pack(fits, num_rows):
        fails, fits = fits, int(np.searchsorted(tokens_n, tokens_n[fits - 1] - unplaced, side="right"))
    packed = fits
    while fails - fits > 1 and (tokens_n[fails - 2] - tokens_n[fits - 1]) * CLOSE_ENOUGH > num_tokens:
        packed = (fits + fails) // 2
        if best_fit.pack(packed, num_rows):
            fails = packed
        else:
            fits = packed
    if packed != fits:
        best_fit.pack(fits, num_rows)
    return best_fit.row_n[:fits], best_fit.offset_n[:fits]


def pack_all(length_n: np.ndarray, *, row_tokens: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Pack every example, into as few rows as best fit needs.

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

    Full rows hold the same tokens but unequal attention: one example of 8192 costs 16 times sixteen of 512. Rows of
    one micro-step are neighbours, so its ranks finish together. Ties keep their order.

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
