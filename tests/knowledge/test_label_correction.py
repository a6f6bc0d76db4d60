"""Shares corrected by texts whose domains are known, with the error of the correction in the interval."""

import numpy as np
import pytest

from versatune_ds.knowledge.estimate import Shares, estimate
from versatune_ds.knowledge.label_correction import (
    KnownLabels,
    RecalibratedLabeller,
    black_box_shares,
    confused_pairs,
    corrected_estimate,
    recalibrated_labeller,
    spread_over_confused,
)


def biased_labels(ids, *, seed):
    """Labels of two domains that overlap, too sure of themselves and biased towards the second."""
    log_odds = np.random.default_rng(seed).normal(loc=np.where(np.array(ids) == 1, 1.0, -1.0), scale=1.4)
    second = 1 / (1 + np.exp(-(2 * log_odds + 2.5)))
    return np.stack([1 - second, second], axis=1)


class BiasedLabeller:
    """Texts are numbers of rows of labels drawn before."""

    def __init__(self, labels):
        self.labels = labels

    def label(self, texts):
        return self.labels[[int(text) for text in texts]]

    def describe(self):
        return {"name": "biased"}


def known_labels(num_texts, *, seed=1):
    ids = [0, 1] * num_texts
    return KnownLabels(labels_NK=biased_labels(ids, seed=seed), domain_ids=ids)


def test_black_box_shares_undo_a_confusion_matrix():
    confusion = np.array([[0.5, 0.5], [0.0, 1.0]])
    assert black_box_shares(np.array([0.25, 0.75]), confusion) == pytest.approx([0.5, 0.5])
    assert black_box_shares(np.array([0.9, 0.1]), confusion) == pytest.approx([1.0, 0.0], abs=1e-3)  # never below 0


def test_black_box_shares_are_not_changed_by_texts_that_are_unclear():
    confusion = np.diag([0.8, 0.8])  # a fifth of the texts of each domain is unclear, the others are right
    assert black_box_shares(np.array([0.72, 0.08]), confusion) == pytest.approx([0.9, 0.1], abs=1e-3)


def test_known_texts_correct_shares_that_the_labeller_gets_wrong():
    ids = [0] * 700 + [1] * 300
    labels, ones = biased_labels(ids, seed=0), np.ones(1000)
    before = estimate(labels, ones, prior_shift=True, seed=0, num_draws=50)
    labeller = RecalibratedLabeller(BiasedLabeller(labels), known_labels(200), texts="made up")
    corrected = labeller.label([str(i) for i in range(1000)])
    after = estimate(corrected, ones, prior_shift=True, seed=0, num_draws=50)
    assert abs(before.sequences.shares_K[0] - 0.7) > 0.15
    assert abs(after.sequences.shares_K[0] - 0.7) < 0.06
    assert black_box_shares(corrected.mean(axis=0), labeller.quality.confusion_KK)[0] == pytest.approx(0.7, abs=0.08)
    assert labeller.quality.calibration_error < 0.08
    found = corrected_estimate(after, labeller, corrected, ones, prior_shift=True, seed=0)
    assert found.sequences.lower_K[0] <= 0.7 <= found.sequences.upper_K[0]


def test_few_known_texts_give_wider_intervals_than_many():
    labels, ones = biased_labels([0] * 300 + [1] * 300, seed=0), np.ones(600)
    widths = []
    for num_texts in (15, 300):
        labeller = RecalibratedLabeller(BiasedLabeller(labels), known_labels(num_texts), texts="made up")
        corrected = labeller.label([str(i) for i in range(600)])
        plain = estimate(corrected, ones, prior_shift=True, seed=0, num_draws=50)
        found = corrected_estimate(plain, labeller, corrected, ones, prior_shift=True, seed=0)
        assert np.all(found.sequences.upper_K >= plain.sequences.upper_K)
        widths.append(float((found.sequences.upper_K - found.sequences.lower_K)[0]))
    assert widths[0] > 1.3 * widths[1]


def test_an_unclear_text_stays_unclear_and_does_not_calibrate():
    known = known_labels(50)
    with_unclear = KnownLabels(
        labels_NK=np.concatenate([known.labels_NK, np.zeros((20, 2))]), domain_ids=[*known.domain_ids, *[0] * 20]
    )
    found, expected = with_unclear.calibration(), known.calibration()
    assert found.bias_K == pytest.approx(expected.bias_K)
    assert found.temperature == pytest.approx(expected.temperature)
    labeller = RecalibratedLabeller(BiasedLabeller(np.array([[0.0, 0.0], [0.2, 0.8]])), known, texts="made up")
    assert labeller.label(["0", "1"]).sum(axis=1) == pytest.approx([0.0, 1.0])


def test_with_too_few_known_texts_nothing_is_corrected_and_the_log_says_how_many_are_needed(caplog):
    labeller = BiasedLabeller(np.eye(2))
    assert recalibrated_labeller(labeller, known_labels(9), texts="known.jsonl") is labeller
    assert "a domain has 9 texts that are not unclear, so they do not correct the shares; give 10" in caplog.text
    assert isinstance(recalibrated_labeller(labeller, known_labels(10), texts=""), RecalibratedLabeller)


def test_known_texts_that_are_unclear_do_not_count_towards_those_needed(caplog):
    labeller, ids = BiasedLabeller(np.eye(2)), [0] * 10 + [1] * 10
    for labels in (np.zeros((20, 2)), np.array([[1.0, 0.0]] * 10 + [[0.0, 0.0]] * 10)):
        caplog.clear()
        assert recalibrated_labeller(labeller, KnownLabels(labels_NK=labels, domain_ids=ids), texts="") is labeller
        assert "a domain has 0 texts that are not unclear" in caplog.text


def test_domains_that_are_confused_may_have_all_or_nothing_of_both_shares():
    shares = Shares(
        shares_K=np.array([0.3, 0.2, 0.5]), lower_K=np.array([0.2, 0.1, 0.4]), upper_K=np.array([0.4, 0.3, 0.6])
    )
    found = spread_over_confused(shares, [(0, 1)])
    assert found.lower_K == pytest.approx([0.0, 0.0, 0.4])
    assert found.upper_K == pytest.approx([0.7, 0.7, 0.6])
    assert spread_over_confused(shares, []).upper_K.tolist() == shares.upper_K.tolist()


def test_domains_that_the_labels_do_not_separate_are_listed():
    confusion = np.array([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.1, 0.1, 0.8]])
    assert confused_pairs(confusion) == [(0, 1)]
    assert confused_pairs(np.full((2, 2), np.nan)) == []
