"""A run may keep its checkpoints on another disk: no two runs share a linked folder, and it is never deleted."""

import os
import shutil

import pytest
from command_line import command_of, write_recipe
from opened_run import config, open_folder
from tiny_run import tiny_config

from versatune_ds.launch import start as launch_module
from versatune_ds.run_folder.checkpoint_files import remove_folder, remove_unfinished
from versatune_ds.run_folder.folder import check_run_folder
from versatune_ds.run_folder.links import lock_run_folder
from versatune_ds.run_folder.owner import this_process


@pytest.fixture
def linked(tmp_path):
    """Make a run whose checkpoints were moved to another disk; return (its folder, the folder there)."""
    folder, elsewhere = open_folder(config(tmp_path)), tmp_path / "disk" / "ck"
    (elsewhere / "step_00000005").mkdir(parents=True)
    (elsewhere / "latest").write_text("step_00000005\n")
    (elsewhere / "thesis.tex").write_text("years of work")
    (folder / "checkpoints").symlink_to(elsewhere)
    return folder, elsewhere


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_fresh_starts_over_on_the_same_disk_and_deletes_nothing_behind_a_link(tmp_path, linked, caplog):
    folder, elsewhere = linked
    (folder / "report").symlink_to(elsewhere)
    open_folder(config(tmp_path), is_fresh=True)
    assert {"latest", "step_00000005", "thesis.tex"} <= set(names(elsewhere))
    assert (folder / "checkpoints").resolve() == tmp_path / "disk" / "ck_2"
    assert names(tmp_path / "disk" / "ck_2") == ["run_folder"]
    assert not (folder / "report").exists()
    assert f"was a link to {elsewhere}, which is kept; it now leads to the new folder" in caplog.text
    (tmp_path / "disk" / "ck_2" / "run_folder").unlink()
    open_folder(config(tmp_path), is_fresh=True)  # an empty one is used as it is
    assert (folder / "checkpoints").resolve() == tmp_path / "disk" / "ck_2"


def test_fresh_deletes_nothing_where_no_new_folder_can_be_made(tmp_path, linked, monkeypatch):
    folder, elsewhere = linked
    (folder / "metrics.jsonl").write_text("old")

    def refuse(*arguments):
        raise PermissionError("no right")

    monkeypatch.setattr("pathlib.Path.symlink_to", refuse)
    with pytest.raises(ValueError, match=r"checkpoints: is a link to .*/disk/ck, whose content --fresh does not"):
        open_folder(config(tmp_path), is_fresh=True)
    assert (folder / "metrics.jsonl").read_text() == "old"
    assert (folder / "checkpoints").resolve() == elsewhere


def test_fresh_on_a_run_folder_that_is_a_link_keeps_the_link(tmp_path):
    folder = open_folder(config(tmp_path))
    folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")
    (folder / "metrics.jsonl").write_text("old")
    open_folder(config(tmp_path), is_fresh=True, has_begun=False)
    assert folder.is_symlink()
    assert "metrics.jsonl" not in names(tmp_path / "moved")


@pytest.mark.parametrize("name", ["r", "r/checkpoints"])
def test_a_dangling_link_is_refused_before_anything_is_loaded(tmp_path, name):
    if name != "r":
        open_folder(config(tmp_path))
    (tmp_path / name).symlink_to(tmp_path / "unmounted")
    with pytest.raises(ValueError, match=rf"^{tmp_path}/{name}: is a link to {tmp_path}/unmounted, where there is no"):
        check_run_folder(config(tmp_path), is_fresh=False)


def test_a_copied_run_does_not_write_into_the_checkpoints_of_the_one_it_was_copied_from(tmp_path, linked):
    folder, elsewhere = linked
    open_folder(config(tmp_path))
    shutil.copytree(folder, tmp_path / "copies" / "r", symlinks=True)
    with pytest.raises(ValueError, match=rf"is a link to {elsewhere}, where the run in {folder} keeps its checkpoints"):
        lock_run_folder(tmp_path / "copies" / "r", is_fresh=False)
    folder.rename(tmp_path / "gone")  # a run that was moved keeps its checkpoints
    for lock in lock_run_folder(tmp_path / "copies" / "r", is_fresh=False):
        lock.release()


def test_checkpoints_elsewhere_are_locked_too(tmp_path, linked):
    folder, elsewhere = linked
    locks = lock_run_folder(folder, is_fresh=False)
    assert [lock.folder for lock in locks] == [folder, elsewhere]
    for lock in locks:
        lock.release()


def test_a_link_to_an_empty_folder_may_exist_before_the_run(tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "disk").mkdir()
    (tmp_path / "r" / "checkpoints").symlink_to(tmp_path / "disk")
    check_run_folder(config(tmp_path), is_fresh=False)
    (tmp_path / "disk" / "step_00000001").mkdir()
    with pytest.raises(ValueError, match="exists and is no run's folder"):
        check_run_folder(config(tmp_path), is_fresh=False)


def test_leftovers_of_kills_are_removed_and_a_users_copy_and_linked_folders_stay(tmp_path):
    checkpoints, elsewhere = tmp_path / "checkpoints", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "weights").write_text("w")
    for ending in ("partial", "universal", "bak", "tar"):
        (checkpoints / f"step_00000003.{ending}").mkdir(parents=True)
    (checkpoints / "step_00000002.old").symlink_to(elsewhere)
    remove_unfinished(tmp_path)
    assert names(checkpoints) == ["step_00000003.bak", "step_00000003.tar"]
    (checkpoints / "step_00000004").symlink_to(elsewhere)
    remove_folder(checkpoints / "step_00000004")
    remove_folder(checkpoints / "step_00000004")
    assert names(elsewhere) == ["weights"]
    assert len(names(checkpoints)) == 2


@pytest.fixture
def owned(tmp_path, monkeypatch):
    """Record the parent of this process, which lives as long as the test, as the owner of the folder `tiny`."""
    with monkeypatch.context() as parent:
        parent.setattr(os, "getpid", os.getppid)
        owner = this_process()
    (tmp_path / ".locks").mkdir()
    (tmp_path / ".locks" / "tiny.owner.json").write_text(owner.to_json())


def test_a_second_export_into_a_folder_is_refused_while_the_first_writes_it(tmp_path, capsys, owned):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("{}")
    called = command_of(capsys)("export", tmp_path / "run", "--output", tmp_path / "tiny")
    assert (called.code, called.out) == (2, "")
    assert called.err.startswith(f"versatune: {tmp_path}/tiny: in use by pid {os.getppid()} on ")
    assert called.err.endswith("or give another --output\n")


def test_train_and_check_report_which_process_uses_a_runs_folder(tmp_path, capsys, monkeypatch, owned):
    recipe = write_recipe(tiny_config(tmp_path), tmp_path / "tiny.yaml")
    monkeypatch.setattr(launch_module, "run_ranks", lambda *arguments, **settings: pytest.fail("started"))
    called = command_of(capsys)("train", recipe, "train.learning_rate=1.0")
    assert called.code == 2
    assert called.err.startswith(f"versatune: {tmp_path}/tiny: in use by pid {os.getppid()} on ")
    assert called.err.count("\n") == 1
    checked = command_of(capsys)("check", recipe)
    (line,) = [line for line in checked.out.splitlines() if "in use by" in line]
    assert line.startswith("warn  files")
