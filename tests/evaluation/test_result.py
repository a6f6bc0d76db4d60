"""Accuracies with intervals, bits per byte, and changes measured on pairs."""

import math

import numpy as np
import pytest

from versatune_ds.domains import DomainSet
from versatune_ds.evaluation.result import Answers, Evaluation, retention
from versatune_ds.evaluation.table import evaluation_table
from versatune_ds.mixture.statistics import ExampleLosses

DOMAINS = DomainSet(("law", "code", "art"))


def answers(right_by_domain):
    ids = [k for k, right in enumerate(right_by_domain) for _ in right]
    right = [bool(value) for part in right_by_domain for value in part]
    return Answers(domain_set=DOMAINS, domain_id_Q=np.array(ids), is_right_Q=np.array(right))


def evaluation(loss_sum_E, *, digest="a", exact=None, choices=None):
    losses = ExampleLosses(
        loss_sum_E=np.array(loss_sum_E), num_loss_tokens_E=np.array([2, 4, 2]), domain_ids_E=np.array([0, 0, 1]),
        num_domains=3,
    )  # fmt: skip
    return Evaluation(
        domain_set=DOMAINS, losses=losses, num_bytes_K=np.array([12, 4, 0]), exact=exact, choices=choices,
        tokenizer_digest=digest,
    )  # fmt: skip


def test_the_interval_is_wilsons_and_a_domain_without_questions_has_none():
    found = answers([[1, 1, 1, 0, 0, 0, 0, 0, 0, 0], [1, 1], []]).to_dict()
    assert found["law"] == pytest.approx(
        {"accuracy": 0.3, "low": 0.10779, "high": 0.60322, "num_questions": 10}, abs=1e-4
    )
    assert (found["code"]["accuracy"], found["code"]["high"]) == (1.0, pytest.approx(1.0))
    assert found["code"]["low"] == pytest.approx(0.3424, abs=1e-4)
    assert "art" not in found


def test_a_change_of_accuracy_is_measured_on_pairs():
    change_K, error_K = answers([[1, 1, 0, 1], [0]]).change_from(answers([[1, 0, 0, 1], [0]]))
    assert change_K[:2].tolist() == [0.25, 0.0]
    assert error_K[0] == pytest.approx(math.sqrt((0.25 - 0.0625) / 3))
    assert np.isnan(change_K[2])


def test_answers_to_different_questions_cannot_be_compared():
    with pytest.raises(ValueError, match="to different questions"):
        answers([[1], [0]]).change_from(answers([[1, 1]]))


def test_bits_per_byte_are_the_loss_sum_over_ln_2_and_the_bytes():
    found = evaluation([2.0, 4.0, 3.0]).to_dict()
    assert found["law"]["loss"] == 1.0
    assert found["law"]["perplexity"] == pytest.approx(math.e)
    assert found["law"]["bits_per_byte"] == pytest.approx(6 / (12 * math.log(2)))
    assert found["law"]["num_examples"] == 2
    assert (found["art"]["loss"], found["art"]["bits_per_byte"], found["art"]["num_examples"]) == (None, None, 0)


def test_retention_compares_losses_per_token_only_with_the_same_tokenizer():
    after, before = evaluation([3.0, 6.0, 1.0]), evaluation([2.0, 4.0, 3.0])
    changes = retention(after, before)
    assert changes["law"]["loss_change"] == pytest.approx(0.5)
    assert changes["code"] == pytest.approx(
        {"loss_change": -1.0, "loss_change_standard_error": None, "bits_per_byte_change": -2 / (4 * math.log(2))}
    )
    other = retention(after, evaluation([2.0, 4.0, 3.0], digest="b"))
    assert set(other["law"]) == {"bits_per_byte_change"}


def test_with_another_tokenizer_multiple_choice_is_compared_but_not_written_answers():
    """Other examples are then too long, so the numbers of questions differ; that must not fail the evaluation."""
    after = evaluation([3.0, 6.0, 1.0], exact=answers([[1, 0], [1]]), choices=answers([[1], [1]]))
    before = evaluation([2.0, 4.0, 3.0], digest="b", exact=answers([[1], [1]]), choices=answers([[0], [1]]))
    changes = retention(after, before)
    assert "exact_match_change" not in changes["law"]
    assert changes["law"]["choices_change"] == pytest.approx(1.0)


def test_the_table_has_only_the_measured_columns_and_a_row_of_means():
    after = evaluation([3.0, 6.0, 1.0], exact=answers([[1, 0], [1]]))
    before = evaluation([2.0, 4.0, 3.0], exact=answers([[0, 0], [1]]))
    result = {"model": "m", "split": "test", "domains": after.to_dict(), "retention": retention(after, before)}
    result["base"] = {"model": "b", "domains": before.to_dict()}
    title, header, _, law, code, art, _, mean, *changes = evaluation_table(result).splitlines()
    assert title == "m, test split"
    assert changes[:2] == ["", "change against b"]
    assert changes[4].split()[:2] == ["law", "+0.500"]
    assert "choices" not in header
    assert law.split()[:2] == ["law", "1.500"]
    assert "0.500 [0.09, 0.91]" in law
    assert code.split()[0] == "code"
    assert set(art.split()) == {"art", "-"}
    assert mean.split()[:2] == ["mean", "1.000"]
