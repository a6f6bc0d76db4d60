"""The embedded classifier: fitted on the recipe's rows, calibrated, its error measured on rows it never saw."""

import random

import numpy as np
import pytest
from chat_data import chat_rows, tiny_tokenizer, write_domains, write_jsonl

from versatune_ds.config import DataConfig
from versatune_ds.knowledge.label_classifier import (
    Calibration,
    ClassifierLabeller,
    fit_calibration,
)
from versatune_ds.knowledge.label_texts import (
    cut_texts,
    domain_set_of,
    read_divided_texts,
    texts_with_smallest_hashes,
)


def divided(folder, **changes):
    settings = {"tokenizer": tiny_tokenizer(), "max_tokens": 64, "rows_per_domain": 500, "cache_dir": folder / "cache"}
    return read_divided_texts(DataConfig(folder=folder), **{**settings, **changes})


def test_records_of_every_domain_are_divided_and_none_is_in_two_parts(tmp_path):
    texts = divided(write_domains(tmp_path, num_rows=100))
    assert [len(part) for part in (texts.fit, texts.calibrate, texts.test)] == [140, 30, 30]
    assert texts.test.domain_ids == [0] * 15 + [1] * 15  # code, law
    parts = [set(part.texts) for part in (texts.fit, texts.calibrate, texts.test)]
    assert len(set.union(*parts)) == 200


def test_equal_records_count_once_and_invalid_ones_not_at_all(tmp_path):
    folder = write_domains(tmp_path, num_rows=40, domains=("law", "code"))
    write_jsonl(folder / "train" / "law.jsonl", [*chat_rows(40, topic="law")] * 3 + ["no json", {"messages": []}])
    assert len(divided(folder).fit) == 2 * 28


def test_the_records_with_the_smallest_hashes_are_kept_whatever_the_order():
    rows = [(7, "g"), (3, "c"), (9, "i"), (3, "c"), (1, "a"), (9, "i"), (5, "e")]
    expected = {1: "a", 3: "c", 5: "e"}
    assert texts_with_smallest_hashes(rows, num_texts=3) == expected
    assert texts_with_smallest_hashes(rows[::-1], num_texts=3) == expected
    assert texts_with_smallest_hashes(rows, num_texts=9) == dict(rows)


class Text(str):
    """A text that counts how many of its kind are alive."""

    num_alive = 0

    def __new__(cls, text):
        cls.num_alive += 1
        return super().__new__(cls, text)

    def __del__(self):
        Text.num_alive -= 1


def test_no_more_texts_are_in_memory_than_are_kept():
    most_alive = 0

    def rows():
        nonlocal most_alive
        order = list(range(2000))
        random.Random(0).shuffle(order)
        for row_hash in order:
            most_alive = max(most_alive, Text.num_alive)
            yield row_hash, Text(row_hash)

    kept = texts_with_smallest_hashes(rows(), num_texts=20)
    assert sorted(kept) == list(range(20))
    assert most_alive <= 22


def test_the_sample_of_a_large_domain_is_that_of_sorting_all_its_rows(tmp_path):
    folder = write_domains(tmp_path, num_rows=100)
    every = divided(folder)
    some = divided(folder, rows_per_domain=40)
    for part in ("fit", "calibrate", "test"):
        assert len(getattr(some, part)) < len(getattr(every, part))
    # 70, 15 and 15 % of a domain's rows in the order of their hashes: the first 28 to fit are among the first 70.
    assert some.fit.texts[:28] == every.fit.texts[:28]
    assert some.calibrate.texts[:6] == every.fit.texts[28:34]


def test_texts_are_cut_where_a_sequence_would_be():
    [cut, short] = cut_texts(["the answer is seven " * 9, "a"], tokenizer=tiny_tokenizer(), max_tokens=4)
    assert len(tiny_tokenizer().encode(cut, add_special_tokens=False)) == 4
    assert short == "a"


def test_a_domain_with_too_few_records_is_refused(tmp_path):
    folder = write_domains(tmp_path, num_rows=40)
    write_jsonl(folder / "train" / "law.jsonl", chat_rows(19))
    with pytest.raises(ValueError, match=r"domain 'law' has 19 different examples, the labeller needs 20; add"):
        divided(folder)


def test_a_single_domain_is_refused(tmp_path):
    folder = write_domains(tmp_path, domains=("law",))
    with pytest.raises(ValueError, match=r"data: one domain alone \(law\)"):
        domain_set_of(DataConfig(folder=folder), cache_dir=tmp_path)


def test_the_classifier_separates_domains_and_reports_its_accuracy(tmp_path):
    labeller = ClassifierLabeller(divided(write_domains(tmp_path, num_rows=200)))
    labels = labeller.label(["law: what is 900 plus 900?\nIt is 1800.", "code: what is 950 plus 950?"])
    assert labels.sum(axis=1) == pytest.approx(1.0)
    assert labels.argmax(axis=1).tolist() == [1, 0]
    description = labeller.describe()
    assert description["accuracy"] == 1.0
    assert description["calibration_error"] < 0.1
    assert description["num_rows"] == {"fit": 280, "calibrate": 60, "test": 60}


def test_indistinguishable_records_get_even_labels_and_a_low_accuracy(tmp_path):
    rows = chat_rows(400)
    random.Random(0).shuffle(rows)
    write_jsonl(tmp_path / "train" / "law.jsonl", rows[:200])
    write_jsonl(tmp_path / "train" / "code.jsonl", rows[200:])
    labeller = ClassifierLabeller(divided(tmp_path))
    assert labeller.confidence < 0.75
    assert 0.2 < labeller.accuracy < 0.8


def test_calibration_undoes_an_overconfident_score_and_a_bias():
    rng = np.random.default_rng(0)
    log_odds = rng.normal(scale=1.5, size=6000)
    is_second = (rng.random(6000) < 1 / (1 + np.exp(-log_odds))).astype(int)
    scores = np.stack([np.zeros(6000), 4 * log_odds + 2], axis=1)
    found = fit_calibration(scores, is_second)
    assert found.temperature == pytest.approx(4, rel=0.15)
    assert found.probabilities(np.array([[0.0, 2.0]]))[0, 1] == pytest.approx(0.5, abs=0.04)


def test_probabilities_are_a_softmax_of_scaled_scores_and_biases():
    calibration = Calibration(temperature=2.0, bias_K=np.array([0.0, np.log(3)]))
    assert calibration.probabilities(np.array([[0.0, 0.0], [2.0, 0.0]])) == pytest.approx(
        np.array([[1 / 4, 3 / 4], [np.e / (np.e + 3), 3 / (np.e + 3)]])
    )
