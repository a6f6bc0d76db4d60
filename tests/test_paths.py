"""`~` and variables in paths are expanded by one rule everywhere."""

from pathlib import Path

import pytest

from versatune_ds.cli import build_parser
from versatune_ds.paths import check_replaceable, expand_path, nearest_path


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("A", "/a")
    monkeypatch.delenv("MISSING", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("~", "/home/me"), ("~/x", "/home/me/x"), ("$A/x", "/a/x"), ("${A}x", "/ax"), ("b/~/c", "b/~/c"),
        ("owner/name", "owner/name"), ("a$/b", "a$/b"), ("costs $5", "costs $5"),
    ],
)  # fmt: skip
def test_home_and_variables_are_replaced(text, expanded):
    assert expand_path(text) == expanded


def test_a_variable_that_is_not_set_is_refused_unless_that_path_exists(tmp_path):
    with pytest.raises(ValueError, match=r"^\$MISSING is not set in the environment"):
        expand_path("$MISSING/x")
    (tmp_path / "$MISSING").mkdir()
    assert expand_path("$MISSING") == "$MISSING"


def test_a_tilde_is_the_home_folder_even_beside_a_folder_of_that_name(tmp_path):
    (tmp_path / "~").mkdir()
    assert expand_path("~") == "/home/me"


def test_variables_can_be_read_from_another_environment():
    assert expand_path("$TMPDIR/k", environ={"TMPDIR": "/local"}) == "/local/k"


def test_the_command_line_expands_paths_that_the_shell_did_not(capsys):
    parsed = build_parser().parse_args(["export", "$A/run", "--output=~/model"])
    assert (str(parsed.run_dir), str(parsed.output)) == ("/a/run", "/home/me/model")
    with pytest.raises(SystemExit) as exit_info:
        build_parser().parse_args(["export", "run", "--output=$MISSING/x"])
    assert exit_info.value.code == 2
    assert "export: --output: '$MISSING/x': $MISSING is not set in the environment" in capsys.readouterr().err


def test_an_output_replaces_only_files_of_its_kind(tmp_path):
    path = tmp_path / "recipe.yaml"
    check_replaceable(path, mark='"weights"')
    path.write_text("run: {name: mine}\n")
    with pytest.raises(ValueError, match=r"^--output: .*recipe\.yaml is a file of another kind; give"):
        check_replaceable(path, mark='"weights"')
    path.write_text('{"weights": {}}')
    check_replaceable(path, mark='"weights"')
    with pytest.raises(ValueError, match="is a folder; expected a file"):
        check_replaceable(tmp_path, mark='"weights"')
    assert path.read_text() == '{"weights": {}}'


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("data/trian/law.jsonl", "data/train/law.jsonl"),
        ("data/train/lawe.jsonl", "data/train/law.jsonl"),
        ("data/train/law.json", "data/train/law.jsonl"),
        ("dat/trian/Medicine.jsonl", "data/train/medicine.jsonl"),
        ("data/train/lwa.csv", "data/train/law.csv"),
        ("data/train/gone.jsonl", None),
        ("data/train/law.jsonl/x", None),
        ("nowhere", None),
    ],
)
def test_a_misspelt_path_is_answered_with_the_nearest_one_that_exists(tmp_path, text, nearest):
    (tmp_path / "data" / "train").mkdir(parents=True)
    for name in ("law.jsonl", "law.csv", "medicine.jsonl", ".law.jsonl.lock"):
        (tmp_path / "data" / "train" / name).touch()
    assert nearest_path(Path(text)) == (None if nearest is None else Path(nearest))
    absolute = nearest_path(tmp_path / text)
    assert absolute == (None if nearest is None else tmp_path / nearest)
