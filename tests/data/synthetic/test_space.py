"""Every numbered question occurs once, in one split, in an order that the seed decides."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from versatune_ds.data.synthetic.corpus import RULES_OF_DOMAIN
from versatune_ds.data.synthetic.space import (
    SPLIT_LANES,
    Arrangements,
    Rule,
    num_questions_in_split,
    permute,
    question_number,
    render_question,
)

RULES = {rule.name: rule for rules in RULES_OF_DOMAIN.values() for rule in rules}


def make_rule(num_questions: int) -> Rule:
    return Rule(name="toy", slots=(range(num_questions),), render=lambda n: (f"{n}?", f"{n}."), weight=1)


def numbers_of(rule: Rule, split: str, *, order_key: str) -> list[int]:
    return [
        question_number(rule, split=split, counter=counter, order_key=order_key)
        for counter in range(num_questions_in_split(rule, split))
    ]


def test_permutation_is_the_same_on_every_machine() -> None:
    assert [permute(index, 10, key="a") for index in range(10)] == [5, 6, 3, 0, 2, 7, 4, 9, 1, 8]
    assert permute(123_456_789, 10**15, key="a") == 946_902_225_683_735


@given(size=st.integers(1, 300), key=st.text(max_size=8))
def test_permutation_reaches_every_number_once(size: int, key: str) -> None:
    assert sorted(permute(index, size, key=key) for index in range(size)) == list(range(size))


def test_arrangements_list_every_ordered_choice_once() -> None:
    assert sorted(Arrangements("abcd", 2)) == sorted(itertools.permutations("abcd", 2))
    assert len(Arrangements(range(30), 3)) == 30 * 29 * 28


def test_thirty_two_questions_give_two_to_the_test_split() -> None:
    rule = make_rule(32)
    assert [num_questions_in_split(rule, split) for split in ("train", "valid", "test")] == [28, 2, 2]
    assert set(numbers_of(rule, "test", order_key="0")) == {permute(n, 32, key="split/toy") for n in (15, 31)}


@given(num_questions=st.integers(16, 400), seed=st.integers())
def test_splits_share_no_question_and_leave_at_most_fifteen_out(num_questions: int, seed: int) -> None:
    rule = make_rule(num_questions)
    numbers = [number for split in SPLIT_LANES for number in numbers_of(rule, split, order_key=str(seed))]
    assert len(set(numbers)) == len(numbers) == num_questions // 16 * 16


@given(seed=st.integers(), other_seed=st.integers())
def test_the_seed_decides_the_order_and_never_the_split(seed: int, other_seed: int) -> None:
    rule = make_rule(400)
    for split in SPLIT_LANES:
        numbers = numbers_of(rule, split, order_key=str(seed))
        other_numbers = numbers_of(rule, split, order_key=str(other_seed))
        assert set(numbers) == set(other_numbers)
        assert (numbers == other_numbers) == (seed == other_seed) or split != "train"


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_different_numbers_give_different_questions(rule: Rule) -> None:
    for slot in rule.slots:
        first_values = [slot[index] for index in range(min(len(slot), 500))]
        assert len(set(first_values)) == len(first_values)
    # The first 1500 numbers exercise the first slots, a stride that reaches the end exercises the last ones.
    numbers = {*range(1500), *range(0, rule.num_questions, rule.num_questions // 1500)}
    questions = {" ".join(render_question(rule, number)[0].lower().split()) for number in numbers}
    assert len(questions) == len(numbers)
