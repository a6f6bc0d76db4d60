"""Records of the built-in corpus: the same bytes for the same seed, right answers, no question in two splits."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from versatune_ds.data.synthetic import DOMAIN_NAMES, generate_records, num_available_records

SPLITS = ("train", "valid", "test")

DIGEST_OF_SEED_ZERO = "eca45703d62817f678dea8758f23604602eb342619ebd3f4136d2b46bcecd62a"


def pairs_of(domain: str, split: str, num_rows: int, *, seed: int = 0) -> list[tuple[str, str]]:
    rows = generate_records(domain, split=split, num_rows=num_rows, seed=seed)
    return [(row["messages"][0]["content"], row["messages"][1]["content"]) for row in rows]


def questions_of(split: str, num_rows: int, *, seed: int = 0) -> list[str]:
    pairs = itertools.chain.from_iterable(pairs_of(domain, split, num_rows, seed=seed) for domain in DOMAIN_NAMES)
    return [" ".join(question.lower().split()) for question, _ in pairs]


def digest_of(seed: int) -> str:
    rows = [pairs_of(domain, split, 60, seed=seed) for domain in DOMAIN_NAMES for split in SPLITS]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def printed_by(program: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(program, {})
    return output.getvalue().strip()


def test_a_record_is_one_question_and_one_answer_in_ascii() -> None:
    for domain in DOMAIN_NAMES:
        for row in generate_records(domain, split="valid", num_rows=100, seed=5):
            assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
            assert all(message["content"].isascii() and message["content"].strip() for message in row["messages"])


def test_the_bytes_of_seed_zero_never_change_unless_the_format_version_does() -> None:
    assert digest_of(0) == DIGEST_OF_SEED_ZERO
    assert digest_of(1) != DIGEST_OF_SEED_ZERO


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_bytes_do_not_depend_on_the_hash_seed_of_python(hash_seed: str) -> None:
    program = (
        "from versatune_ds.data.synthetic import *\n"
        "for name in DOMAIN_NAMES:\n"
        "    print(*generate_records(name, split='train', num_rows=40, seed=3), sep='\\n')"
    )
    expected = printed_by(program)
    command = [sys.executable, "-c", program]
    environment = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(filter(None, sys.path))}
    completed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert completed.stdout.strip() == expected


@settings(deadline=None)
@given(
    domain=st.sampled_from(DOMAIN_NAMES), split=st.sampled_from(SPLITS), num_rows=st.integers(0, 60), seed=st.integers()
)
def test_a_longer_corpus_begins_with_the_shorter_one(domain: str, split: str, num_rows: int, seed: int) -> None:
    assert pairs_of(domain, split, 60, seed=seed)[:num_rows] == pairs_of(domain, split, num_rows, seed=seed)


def test_no_question_occurs_twice_in_a_domain_or_in_two_splits_of_any_domains_and_seeds() -> None:
    train_questions = {*questions_of("train", 4000), *questions_of("train", 4000, seed=1)}
    valid_questions = {*questions_of("valid", 1500), *questions_of("valid", 1500, seed=2)}
    test_questions = {*questions_of("test", 1500), *questions_of("test", 1500, seed=3)}
    assert not train_questions & valid_questions
    assert not train_questions & test_questions
    assert not valid_questions & test_questions
    for domain in DOMAIN_NAMES:
        questions = [question for question, _ in pairs_of(domain, "train", 4000)]
        assert len(set(questions)) == len(questions)


def test_large_splits_share_no_question() -> None:
    questions = {split: {question for question, _ in pairs_of("medicine", split, 30_000)} for split in SPLITS}
    assert [len(questions[split]) for split in SPLITS] == [30_000] * 3
    assert len(set.union(*questions.values())) == 90_000


def test_every_split_of_every_domain_has_a_million_records() -> None:
    assert all(num_available_records(domain, split=split) >= 10**6 for domain in DOMAIN_NAMES for split in SPLITS)


def test_asking_for_more_records_than_available_fails_at_the_call() -> None:
    num_available = num_available_records("law", split="test")
    with pytest.raises(ValueError, match=rf"num_rows: law/test has {num_available} rows without repeating"):
        generate_records("law", split="test", num_rows=num_available + 1, seed=0)
    generate_records("law", split="test", num_rows=num_available, seed=0)


def test_an_error_for_an_unknown_name_suggests_the_nearest_one() -> None:
    with pytest.raises(ValueError, match="unknown domain 'medecine'; did you mean 'medicine'"):
        generate_records("medecine", split="train", num_rows=1, seed=0)
    with pytest.raises(ValueError, match="unknown split 'validation'; did you mean 'valid'"):
        generate_records("law", split="validation", num_rows=1, seed=0)


def test_general_and_law_answer_the_same_question_differently() -> None:
    law = dict(pairs_of("law", "train", 16_000))
    general = dict(pairs_of("general", "train", 16_000))
    shared = {"What does it mean?" in question for question in law.keys() & general.keys()}
    assert shared <= {True}
    meaning = {q.split("the word ")[1].split()[0]: a for q, a in law.items() if "the word" in q}
    everyday = {q.split("the word ")[1].split()[0]: a for q, a in general.items() if "the word" in q}
    assert len(meaning) == 8
    assert len(everyday) == 16
    assert all(everyday[word] != answer for word, answer in meaning.items())


def test_answers_about_programs_are_what_python_prints() -> None:
    for question, answer in pairs_of("code", "test", 400):
        if question.startswith("What does this print?\n"):
            assert answer.endswith(f"prints {printed_by(question.split(chr(10), 1)[1])}.")


def test_answers_that_are_programs_do_what_was_asked() -> None:
    question, answer = next(
        (q, a) for q, a in pairs_of("code", "train", 4000) if "the sum of the even numbers, each doubled" in q
    )
    scope: dict = {}
    exec(answer, scope)
    name = re.search(r"function (\w+)\(", question)
    assert name is not None
    assert scope[name.group(1)]([1, 2, 3, 4]) == 12


def test_percentages_in_finance_and_science_are_exact() -> None:
    answers = [answer for domain in ("finance", "science") for _, answer in pairs_of(domain, "train", 900)]
    found = [re.fullmatch(r"(\d+)% of (\d+) is (\d+) (?:dollars|ml)\.", answer) for answer in answers]
    numbers = [tuple(map(int, match.groups())) for match in found if match]
    assert len(numbers) > 700
    assert all(rate * amount == 100 * result for rate, amount, result in numbers)


def test_the_answer_to_a_clause_question_is_the_section_that_contains_the_clause() -> None:
    num_found = 0
    for question, answer in pairs_of("law", "valid", 400):
        asked = re.search(r"Which section tells (.+) to (.+)\?", question)
        if asked:
            assert f"{answer.rstrip('.')}: {asked[1]} shall {asked[2]} within" in question
            num_found += 1
    assert num_found > 50


def test_every_illness_has_two_different_signs_and_one_diagnosis() -> None:
    pairs = [(q, a) for q, a in pairs_of("medicine", "train", 9000) if "What is the diagnosis" in q]
    illness_of_findings: dict[tuple[str, str, str], str] = {}
    for question, answer in pairs:
        match = re.search(r" has (.+), (.+) and (an? .+)\. What", question)
        assert match is not None
        first, second = sorted(match.groups()[:2])
        assert first != second
        assert illness_of_findings.setdefault((first, second, match[3]), answer) == answer
    assert len(set(illness_of_findings.values())) == len(illness_of_findings) == 60
