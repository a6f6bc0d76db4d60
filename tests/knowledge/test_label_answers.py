"""What a model answers about a text's domain: JSON, lists, sentences, reasoning, and what is no answer."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from versatune_ds.domains import DomainSet
from versatune_ds.knowledge.language_models.label_answers import read_answer

DOMAINS = DomainSet(("law", "general", "Real estate"))
UNREADABLE = [0, 0, 0]


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ('{"law": 0.2, "general": 0.8}', [0.2, 0.8, 0.0]),
        ('Sure!\n```json\n{"LAW": 1, "real estate ": 3}\n```', [0.25, 0.0, 0.75]),
        ('{"law": 0.5, "other": 0.5}', [0.5, 0.0, 0.0]),
        ('{"law": 20, "general": 60, "poetry": 20}', [0.2, 0.6, 0.0]),
        ('{"law": "20%", "general": "80%"}', [0.2, 0.8, 0.0]),
        ('{"law": 1} and then it goes on {"general": 1}', [1, 0, 0]),
        ('{"domain": "law"}', [1, 0, 0]),
        ('{"domain": "Real Estate", "probability": 0.8}', [0, 0, 0.8]),
        ('{"probabilities": {"law": 1, "general": 3}}', [0.25, 0.75, 0]),
        ('["law"]', [1, 0, 0]),
        ('{"law": 0}', UNREADABLE),
        ('{"law": -1, "general": 2}', UNREADABLE),
        ('{"law": NaN}', UNREADABLE),
        pytest.param('{"law": 1' + "0" * 400 + "}", UNREADABLE, id="beyond a float"),
        ('{"law": true}', UNREADABLE),
        ('{"law": "high"}', UNREADABLE),
        ('{"law": 0.5', UNREADABLE),
        ('{"domain": "poetry"}', UNREADABLE),
    ],
)
def test_an_object_is_read_as_probabilities_or_as_one_name(answer, label):
    assert read_answer(answer, DOMAINS) == pytest.approx(np.array(label))


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("law", [1, 0, 0]),
        ("**Law**", [1, 0, 0]),
        ("A) law", [1, 0, 0]),
        ("(C) Real estate.", [0, 0, 1]),
        ("The domain is law.", [1, 0, 0]),
        ("Answer: LAW", [1, 0, 0]),
        ('The text between the lines belongs to the domain of "law"', [1, 0, 0]),  # SmolLM2
        ("law, general", [0.5, 0.5, 0]),
        ("law (70%), general", [0.7, 0.3, 0]),
        ("law (70%)", [0.7, 0, 0]),
        ("70% law, 30% real estate", [0.7, 0, 0.3]),
        ("- law: 0.25\n- general: 0.75", [0.25, 0.75, 0]),
        ("1. law - 80 percent\n2. other - 20 percent", [0.8, 0, 0]),
        ("law: 90, general: 60", [0.6, 0.4, 0]),
        ("Here is what I found:\nlaw: 70%\nreal estate: 30%\nI hope this helps!", [0.7, 0, 0.3]),
        ("This text describes a contract between two firms. The domain is law.", [1, 0, 0]),
        ("The text speaks of tenants who pay, so **real estate** fits.", [0, 0, 1]),
        ("<think>It could be general, or law.\nGeneral?</think>\n\nLaw", [1, 0, 0]),
        ("could be general</think>law", [1, 0, 0]),
        ("other", UNREADABLE),
        ("None of them.", UNREADABLE),
    ],
)
def test_names_numbers_and_words_of_answering_are_an_answer(answer, label):
    assert read_answer(answer, DOMAINS) == pytest.approx(np.array(label))


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "I cannot say.",
        "In general, I cannot say.",
        "It is not law.",
        "It is not **law**, I think.",
        "Is it law?",
        "The laws of nature",
        "It is law.\nI looked again and changed my mind.\nIt is general.",
        "<think>\nThe domain is law.",
        "law 70% 30%",
        "A",
    ],
)
def test_what_is_no_answer_belongs_to_no_domain_and_not_to_general(answer):
    assert read_answer(answer, DOMAINS).tolist() == UNREADABLE


def test_domains_of_one_letter_are_names_and_not_enumerators():
    assert read_answer("R: 0.25\nC: 0.75", DomainSet(("C", "R"))) == pytest.approx([0.75, 0.25])


def test_a_domain_may_be_called_other():
    assert read_answer("other", DomainSet(("law", "other"))).tolist() == [0, 1]


@pytest.mark.parametrize("answer", ["law " + "1" * 400, '{"domain": "law ' + "9" * 400 + '"}'])
def test_a_number_too_large_for_a_float_is_no_answer(answer):
    assert read_answer(answer, DOMAINS).tolist() == [0.0] * len(DOMAINS)


@given(st.text(alphabet="law genrl%{}[]\"'*:.,0123456789-()<>/\n?", max_size=60))
def test_any_answer_gives_probabilities_that_sum_to_one_or_less(answer):
    label = read_answer(answer, DOMAINS)
    assert np.all(label >= 0)
    assert label.sum() <= 1 + 1e-9
