"""Where an evaluation's result goes: named by rows and checkpoint, and never over one that was asked otherwise."""

import json

import pytest

from versatune_ds.evaluation.result_file import result_name, write_result


@pytest.mark.parametrize(
    ("split", "step", "expected"),
    [
        ("test", None, "evaluation.json"),
        ("valid", None, "evaluation-valid.json"),
        ("test", 100, "evaluation-step-100.json"),
        ("valid", 100, "evaluation-valid-step-100.json"),
    ],
)
def test_the_name_says_which_rows_and_which_checkpoint_unless_they_are_the_usual_ones(split, step, expected):
    assert result_name(split=split, default_split="test", step=step) == expected


def contents(folder):
    return {json.loads(path.read_text())["loss"]: path.name for path in folder.iterdir()}


def test_the_newest_result_has_the_name_and_one_asked_otherwise_is_kept_beside_it(tmp_path):
    path = tmp_path / "evaluation.json"
    write_result({"loss": 1, "asked": {"exact": 0}}, path)
    write_result({"loss": 2, "asked": {"exact": 0}}, path)
    assert contents(tmp_path) == {2: "evaluation.json"}
    write_result({"loss": 3, "asked": {"exact": 50}}, path)
    assert contents(tmp_path) == {3: "evaluation.json", 2: contents(tmp_path)[2]}
    write_result({"loss": 4, "asked": {"exact": 0}}, path)
    assert set(contents(tmp_path)) == {2, 3, 4}
    assert contents(tmp_path)[4] == "evaluation.json"


@pytest.mark.parametrize("earlier", ["", "[]", '{"loss": 1}', '{"lo'])
def test_a_result_that_does_not_say_what_was_asked_is_kept(tmp_path, earlier):
    path = tmp_path / "evaluation.json"
    path.write_text(earlier)
    write_result({"asked": {}}, path)
    (kept,) = set(tmp_path.iterdir()) - {path}
    assert kept.read_text() == earlier
