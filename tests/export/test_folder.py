"""An export replaces no files of other origin, and is written completely or not at all."""

import json

import pytest

from versatune_ds.export.folder import check_output, export_folder
from versatune_ds.export.replaced import log_what_is_replaced

OLD_CARD = "---\n# license: (yours to state)\ntags: [versatune, multi-domain]\n---\n# mine\n\n# more\n"


def check(output, tmp_path, *, is_forced=False):
    check_output(output, run_name="mine", run_dir=tmp_path / "runs/mine", base_model=None, is_forced=is_forced)


def write_export(output, *, run_name="mine", names=("model.safetensors",)):
    with export_folder(output, run_name=run_name) as folder:
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("new")


def test_a_folder_with_files_of_other_origin_is_refused_unless_forced(tmp_path):
    (tmp_path / "a").mkdir()
    check(tmp_path / "a", tmp_path)
    check(tmp_path / "nowhere", tmp_path)
    for name in ("notes.txt", "thesis.tex"):
        (tmp_path / "a" / name).write_text("mine")
    with pytest.raises(ValueError, match=r"a contains something else \(notes.txt, thesis.tex\); .* with --force$"):
        check(tmp_path / "a", tmp_path)
    check(tmp_path / "a", tmp_path, is_forced=True)
    write_export(tmp_path / "a")
    assert (tmp_path / "a" / "notes.txt").read_text() == "mine"


def test_an_earlier_export_of_the_run_is_replaced_and_one_of_another_run_refused(tmp_path):
    write_export(tmp_path / "a", names=("model-00001-of-00002.safetensors", "config.json"))
    check(tmp_path / "a", tmp_path)
    (tmp_path / "a" / "model_of_mine.safetensors").write_text("mine")
    write_export(tmp_path / "a", names=("model.safetensors", "sub/file.py", "config.json"))
    names = {path.relative_to(tmp_path / "a").as_posix() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    assert names == {"model.safetensors", "sub/file.py", "config.json", "versatune_export.json",
                     "model_of_mine.safetensors"}  # fmt: skip
    write_export(tmp_path / "b", run_name="other")
    with pytest.raises(ValueError, match=r"b contains the export of another run, other; "):
        check(tmp_path / "b", tmp_path)


def test_exports_of_earlier_versions_are_recognised_by_their_card(tmp_path):
    (tmp_path / "README.md").write_text(OLD_CARD)
    check(tmp_path, tmp_path / "elsewhere")
    (tmp_path / "README.md").write_text(OLD_CARD.replace("# mine", "# other"))
    with pytest.raises(ValueError, match="another run, other"):
        check(tmp_path, tmp_path / "elsewhere")


@pytest.mark.parametrize("name", ["", "checkpoints", "tokenizer", "model"])
def test_the_runs_own_folders_are_refused_even_if_forced(tmp_path, name):
    with pytest.raises(ValueError, match="belongs to the run itself"):
        check(tmp_path / "runs/mine" / name, tmp_path, is_forced=True)


def test_an_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "f").write_text("x")
    with pytest.raises(ValueError, match="is a file; give a folder"):
        check(tmp_path / "f", tmp_path, is_forced=True)


def test_a_failed_export_leaves_earlier_files_unchanged(tmp_path):
    def fail(output):
        with export_folder(output, run_name="mine") as folder:
            (folder / "model.safetensors").write_text("half")
            raise OSError("disk full")

    write_export(tmp_path / "a")
    for name in ("a", "b"):
        with pytest.raises(OSError, match="disk full"):
            fail(tmp_path / name)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["model.safetensors", "versatune_export.json"]
    assert (tmp_path / "a" / "model.safetensors").read_text() == "new"
    assert json.loads((tmp_path / "a" / "versatune_export.json").read_text())["run"] == "mine"
    assert not (tmp_path / "b").exists()


def test_what_an_export_replaces_is_logged_and_nothing_for_a_new_folder(tmp_path, caplog):
    log_what_is_replaced(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    log_what_is_replaced(tmp_path / "empty")
    assert caplog.messages == []
    write_export(tmp_path / "a", names=("model.safetensors", "config.json"))
    log_what_is_replaced(tmp_path / "a")
    (message,) = caplog.messages
    files = "config.json, model.safetensors, versatune_export.json"
    assert message == f"{tmp_path}/a: replacing the export of mine ({files}); give another --output to keep both"
    (tmp_path / "a" / "versatune_export.json").write_text('{"run": "mine", "step": 40}')
    log_what_is_replaced(tmp_path / "a")
    assert "replacing the export of step 40 of mine (" in caplog.text
    (tmp_path / "a" / "versatune_export.json").unlink()
    log_what_is_replaced(tmp_path / "a")
    assert "replacing files of the same names among config.json, model.safetensors, and weights;" in caplog.text
