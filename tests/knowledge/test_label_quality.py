"""How well labels fit known domains, by hand; and the file of labelled texts."""

import json

import numpy as np
import pytest

from versatune_ds.domains import DomainSet
from versatune_ds.knowledge.label_quality import (
    equal_weights,
    expected_calibration_error,
    quality_of,
    quality_table,
    read_labelled_texts,
)

DOMAINS = DomainSet(("law", "code"))


def test_accuracy_and_confusion_count_every_domain_the_same_and_an_unclear_text_is_wrong():
    labels = np.array([[0.8, 0.2], [0.0, 0.0], [0.6, 0.4]])
    found = quality_of(labels, [0, 0, 1], texts="by hand")
    assert found.accuracy == pytest.approx(0.25)  # law 1 of 2, code 0 of 1
    assert found.mean_probability == pytest.approx((0.4 + 0.4) / 2)
    assert found.confusion_KK == pytest.approx(np.array([[0.4, 0.1], [0.6, 0.4]]))
    # Clear texts: weight 1/4, .8 and right; weight 1/2, .6 and wrong; the weights are scaled to 1.
    assert found.calibration_error == pytest.approx((0.25 * 0.2 + 0.5 * 0.6) / 0.75)


def test_calibration_error_by_hand():
    labels, ids = np.array([[0.9, 0.1], [0.9, 0.1], [0.35, 0.65], [0.35, 0.65]]), np.array([0, 0, 1, 0])
    # weights 1/6 1/6 1/2 1/6: |1/6*(.9-1)*2| + |1/2*(.65-1) + 1/6*.65| = .0333 + .0667
    assert equal_weights(ids) == pytest.approx([1 / 6, 1 / 6, 1 / 2, 1 / 6])
    assert expected_calibration_error(labels, ids) == pytest.approx(0.1)


def test_a_domain_without_texts_is_left_out_and_null_in_the_file():
    values = quality_of(np.array([[1.0, 0.0]]), [0], texts="by hand").describe(DOMAINS)
    assert values["accuracy"] == 1.0
    assert values["confusion"] == {"law": {"law": 1.0, "code": 0.0}, "code": None}
    assert json.loads(json.dumps(values)) == values
    assert quality_table(values).splitlines()[-1].split() == ["code", "-", "-", "-", "0"]


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_labelled_texts_are_read_in_order(tmp_path):
    path = write(tmp_path / "known.jsonl", {"text": "x = 1", "domain": "code"}, "", {"text": "rent", "domain": "law"})
    found = read_labelled_texts(path, domain_set=DOMAINS)
    assert (found.texts, found.domain_ids) == (["x = 1", "rent"], [1, 0])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["no json"], r"known.jsonl:1: no JSON object; expected"),
        ([{"txt": "a", "label": "law"}], r"known.jsonl:1: no field 'text'; found txt, label; expected"),
        ([{"text": "a", "label": "law"}], r"known.jsonl:1: no field 'domain'; found text, label; expected"),
        ([{}], r"known.jsonl:1: no field 'text'; found none; expected"),
        (
            [{"text": "a", "domain": "law"}, {"text": "b", "domain": "lew"}],
            r"known.jsonl:2: domain: 'lew'; did you mean",
        ),
        ([{"text": " ", "domain": "law"}], r"known.jsonl:1: text: .*: expected a text that is not empty"),
        ([{"text": "a", "domain": "law"}], r"known.jsonl: no text of code; give some of every domain"),
    ],
)
def test_a_mistake_in_the_labelled_texts_is_one_line_with_its_place(tmp_path, lines, message):
    with pytest.raises(ValueError, match=message) as error:
        read_labelled_texts(write(tmp_path / "known.jsonl", *lines), domain_set=DOMAINS)
    assert str(error.value).startswith("--labelled: ")
    assert "\n" not in str(error.value)


def test_a_missing_file_of_labelled_texts_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^--labelled: .*: no such file"):
        read_labelled_texts(tmp_path / "none.jsonl", domain_set=DOMAINS)
