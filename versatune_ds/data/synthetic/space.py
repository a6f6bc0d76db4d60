"""Number every question that a rule can ask, so that a record is a pure function of its number.

A rule with slots (a name, a sum, a rate) has finitely many questions; counting through the slots numbers them. A fixed
permutation scatters the numbers over 16 lanes, and the lane alone decides the split: a question belongs to the same
split in every corpus, for every seed and size. Within a split a second permutation, keyed by the seed, gives the order.
Both are bijections, so no question occurs twice.

Worked example, 32 questions: the test split is lane 15 of each block of 16, so it has the images of 15 and 31 under the
fixed permutation: two questions, which the seed puts in one of two orders.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Split = Literal["train", "valid", "test"]

NUM_LANES = 16
SPLIT_LANES: dict[str, range] = {"train": range(0, 14), "valid": range(14, 15), "test": range(15, 16)}
_NUM_ROUNDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One kind of question: its slots, and how they become text."""

    name: str
    """Unique, and part of the split's key: two domains with a rule of the same name and slots put the same question in
    the same split, so both may ask it."""
    slots: tuple[Sequence[Any], ...]
    """The values of each slot; different values must give different questions."""
    render: Callable[..., tuple[str, str]]
    """Returns (question, answer) for one value per slot."""
    weight: int
    """Number of a domain's records that this rule makes, relative to the domain's other rules."""

    @property
    def num_questions(self) -> int:
        """Return the number of different questions of the rule."""
        return math.prod(len(slot) for slot in self.slots)


@dataclass(frozen=True, slots=True)
class Arrangements(Sequence[Any]):
    """A sequence of all ordered choices of `length` different values of a pool, without storing them."""

    pool: Sequence[Any]
    length: int

    def __len__(self) -> int:
        """Return the number of arrangements, n! / (n - length)!."""
        return math.perm(len(self.pool), self.length)

    def __getitem__(self, index: int) -> tuple[Any, ...]:  # type: ignore[override]
        """Return arrangement `index`: each digit picks one of the remaining values.

        Raises:
            IndexError: If `index` is out of range, which ends an iteration over the sequence.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"arrangement {index} of {len(self)}")
        remaining = list(self.pool)
        chosen = []
        for _ in range(self.length):
            index, digit = divmod(index, len(remaining))
            chosen.append(remaining.pop(digit))
        return tuple(chosen)


def permute(index: int, size: int, *, key: str) -> int:
    """Map `index` to its image under a keyed permutation of range(size).

    An alternating Feistel network on a grid of about sqrt(size) x sqrt(size) cells, repeated while the result is one of
    the few cells beyond `size`. The corpus has a permutation of its own, because its bytes must never change.
    """
    num_columns = math.isqrt(size - 1) + 1
    num_rows = -(-size // num_columns)
    image = index
    while True:
        row, column = divmod(image, num_columns)
        for round_id in range(0, _NUM_ROUNDS, 2):
            row = (row + _keyed_hash(key, round_id, column)) % num_rows
            column = (column + _keyed_hash(key, round_id + 1, row)) % num_columns
        image = row * num_columns + column
        if image < size:
            return image


def num_questions_in_split(rule: Rule, split: str) -> int:
    """Return how many of a rule's questions belong to a split; up to 15 questions of a rule belong to none."""
    return rule.num_questions // NUM_LANES * len(SPLIT_LANES[split])


def question_number(rule: Rule, *, split: str, counter: int, order_key: str) -> int:
    """Return the number of the question at place `counter` of a rule's split.

    Args:
        rule: The rule that asks.
        split: Which split the question must belong to.
        counter: Place in the split's order, below `num_questions_in_split`.
        order_key: Decides the order within the split, not the split.
    """
    lanes = SPLIT_LANES[split]
    cell = permute(counter, num_questions_in_split(rule, split), key=f"order/{order_key}/{rule.name}/{split}")
    block, lane = divmod(cell, len(lanes))
    return permute(block * NUM_LANES + lanes[lane], rule.num_questions, key=f"split/{rule.name}")


def render_question(rule: Rule, number: int) -> tuple[str, str]:
    """Return (question, answer) of one of a rule's questions: the digits of its number pick the slots' values."""
    values = []
    for slot in rule.slots:
        number, digit = divmod(number, len(slot))
        values.append(slot[digit])
    return rule.render(*values)


def _keyed_hash(key: str, round_id: int, value: int) -> int:
    """Return a 64-bit hash of the arguments, equal on every machine and Python version."""
    return int.from_bytes(hashlib.blake2b(f"{key}/{round_id}/{value}".encode(), digest_size=8).digest(), "big")
