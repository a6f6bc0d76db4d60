"""A checkpoint is complete or does not count; a corrupt one is logged and the one before it is used."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from ranks import run_ranks

from versatune_ds.engine.checkpoint import NewCheckpoint, SaveError, save_checkpoint
from versatune_ds.run_folder.checkpoint_files import (
    check_valid,
    complete_checkpoints,
    newest_valid_checkpoint,
    read_state,
    remove_unfinished,
)


class FakeEngine:
    """Stand-in for DeepSpeed's engine: writes two files a rank through its checkpoint engine, without a model."""

    def __init__(self, rank, *, dies=False):
        self.rank, self.dies = rank, dies

    def save_checkpoint(self, save_dir, *, tag, client_state, save_latest, exclude_frozen_parameters):
        assert client_state == {}
        assert not exclude_frozen_parameters
        for name in ("model", "optim"):
            path = Path(save_dir) / tag / f"{name}_{self.rank}.pt"
            self.checkpoint_engine.save({"values": torch.full((1000,), float(self.rank))}, str(path))
        if self.dies:
            raise KeyboardInterrupt


def save_steps(steps, *, keep=10, engine=FakeEngine, best_step=None):
    def work(world, run_dir):
        for step in steps:
            new = NewCheckpoint(
                run_dir=run_dir, step=step, state={"step": step}, keep=keep, world=world, best_step=best_step
            )
            save_checkpoint(engine(world.rank), new)

    return work


def run(work, tmp_path, name="results", world_size=2):
    (tmp_path / name).mkdir()
    run_dir = tmp_path / "run"
    return run_ranks(lambda world: work(world, run_dir), world_size=world_size, folder=tmp_path / name)


def find(tmp_path, name):
    return run(lambda world, run_dir: newest_valid_checkpoint(run_dir, world), tmp_path, name)


def test_the_manifest_lists_every_file_and_the_newest_checkpoint_is_found(tmp_path):
    run(save_steps([1, 2]), tmp_path)
    newest = complete_checkpoints(tmp_path / "run")[0]
    assert newest.name == "step_00000002"
    files = json.loads((newest / "MANIFEST").read_text())["files"]
    assert sorted(files) == ["model_0.pt", "model_1.pt", "optim_0.pt", "optim_1.pt", "versatune.json"]
    assert files["model_1.pt"][0] == (newest / "model_1.pt").stat().st_size > 4000
    assert read_state(newest) == {"step": 2}
    assert (newest.parent / "latest").read_text() == "step_00000002\n"


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    run(save_steps([1, 2, 3, 4], keep=2), tmp_path)
    assert [path.name for path in complete_checkpoints(tmp_path / "run")] == ["step_00000004", "step_00000003"]
    assert sorted(os.listdir(tmp_path / "run" / "checkpoints")) == ["latest", "step_00000003", "step_00000004"]


def test_the_best_checkpoint_is_kept_whatever_its_age(tmp_path):
    run(save_steps([1, 2, 3, 4], keep=1, best_step=2), tmp_path)
    assert [path.name for path in complete_checkpoints(tmp_path / "run")] == ["step_00000004", "step_00000002"]
    run(save_steps([5], keep=1, best_step=5), tmp_path, "better")
    assert [path.name for path in complete_checkpoints(tmp_path / "run")] == ["step_00000005"]


def test_a_corrupt_checkpoint_of_a_later_step_does_not_count_towards_keep(tmp_path):
    run(save_steps([4]), tmp_path)
    (tmp_path / "run" / "checkpoints" / "step_00000004" / "optim_0.pt").write_bytes(b"corrupt")
    run(save_steps([2, 3], keep=1), tmp_path, "restarted")
    assert find(tmp_path, "found") == [tmp_path / "run" / "checkpoints" / "step_00000003"] * 2
    assert sorted(os.listdir(tmp_path / "run" / "checkpoints")) == ["latest", "step_00000003"]


def test_a_folder_that_rank_zero_cannot_list_fails_the_save_on_all_ranks(tmp_path, monkeypatch):
    def work(world, run_dir):
        if world.is_rank_zero:
            stale = OSError(errno.ESTALE, "Stale file handle")
            monkeypatch.setattr("versatune_ds.run_folder.checkpoint_files.file_names", lambda folder: _raise(stale))
        with pytest.raises(SaveError) as raised:
            save_steps([1])(world, run_dir)
        return str(raised.value)

    assert run(work, tmp_path) == ["[Errno 116] Stale file handle", "another rank could not write its files"]


def test_a_save_succeeds_though_an_old_checkpoint_cannot_be_deleted(tmp_path, monkeypatch, caplog):
    busy = OSError(errno.EBUSY, "Device or resource busy")
    usual = Path.rename
    fails = lambda path: path.name == "step_00000001"  # noqa: E731
    monkeypatch.setattr(Path, "rename", lambda path, to: _raise(busy) if fails(path) else usual(path, to))
    run(save_steps([1, 2], keep=1), tmp_path, world_size=1)
    assert [path.name for path in complete_checkpoints(tmp_path / "run")] == ["step_00000002", "step_00000001"]


DAMAGES = {
    "flip the first byte": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "flip a middle byte": lambda content: (
        content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :]
    ),
    "truncate": lambda content: content[:-1],
    "empty": lambda content: b"",
}


@pytest.mark.parametrize("name", ["model_0.pt", "optim_1.pt", "versatune.json", "MANIFEST"])
def test_any_damage_to_any_file_is_reported_and_the_checkpoint_before_is_used(tmp_path, name):
    run(save_steps([1, 2]), tmp_path)
    path = tmp_path / "run" / "checkpoints" / "step_00000002" / name
    content = path.read_bytes()

    def look(world, run_dir):
        found = []
        for damage in [*DAMAGES, "remove"]:
            if world.is_rank_zero:
                path.unlink() if damage == "remove" else path.write_bytes(DAMAGES[damage](content))
            found.append(newest_valid_checkpoint(run_dir, world).name)
        return found

    assert run(look, tmp_path, "found") == [["step_00000001"] * 5] * 2
    if name != "MANIFEST":  # without its MANIFEST a folder is no checkpoint any more
        path.write_bytes(content[:-1])
        with pytest.raises(RuntimeError, match=rf"step_00000002 is corrupt \({name}\); delete it to use"):
            check_valid(path.parent)
    path.write_bytes(content)
    check_valid(path.parent)


def test_a_change_of_any_byte_of_a_manifest_is_detected(tmp_path):
    run(save_steps([1]), tmp_path)
    folder = tmp_path / "run" / "checkpoints" / "step_00000001"
    text = (folder / "MANIFEST").read_text()
    for i, letter in enumerate(text):
        if letter.isspace():
            continue
        changed = text[:i] + ("7" if letter != "7" else "8") + text[i + 1 :]
        (folder / "MANIFEST").write_text(changed)
        with pytest.raises(RuntimeError, match="is corrupt"):
            check_valid(folder)


def test_a_checkpoint_of_another_format_is_reported_as_such(tmp_path):
    run(save_steps([1]), tmp_path)
    folder = tmp_path / "run" / "checkpoints" / "step_00000001"
    manifest = json.loads((folder / "MANIFEST").read_text())
    (folder / "MANIFEST").write_text(json.dumps({**manifest, "version": 2}))
    with pytest.raises(RuntimeError, match=r"is corrupt \(MANIFEST of format 2, this version reads 1\)"):
        check_valid(folder)
    (folder / "MANIFEST").write_text(json.dumps(manifest["files"]))
    with pytest.raises(RuntimeError, match=r"\(MANIFEST of format before 1, this version reads 1\)"):
        check_valid(folder)


def test_a_killed_save_is_ignored_and_its_files_are_deleted(tmp_path):
    run(save_steps([1]), tmp_path)

    def die(world, run_dir):
        new = NewCheckpoint(run_dir=run_dir, step=2, state={}, keep=2, world=world)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(FakeEngine(world.rank, dies=True), new)

    run(die, tmp_path, "dying")
    assert (tmp_path / "run" / "checkpoints" / "step_00000002.partial").is_dir()
    assert [found.name for found in find(tmp_path, "found")] == ["step_00000001"] * 2
    run(save_steps([2]), tmp_path, "again")
    assert [found.name for found in find(tmp_path, "found_again")] == ["step_00000002"] * 2
    (tmp_path / "run" / "checkpoints" / "step_00000003.partial").mkdir()
    remove_unfinished(tmp_path / "run")
    assert sorted(os.listdir(tmp_path / "run" / "checkpoints")) == ["latest", "step_00000001", "step_00000002"]


@pytest.mark.parametrize("where", ["DeepSpeed's file", "our state", "the manifest"])
def test_a_full_disk_on_one_rank_fails_the_save_on_all_and_leaves_no_partial_folder(tmp_path, monkeypatch, where):
    run(save_steps([1]), tmp_path)
    full = OSError(errno.ENOSPC, "No space left on device")

    def fill(world):
        if where == "DeepSpeed's file":
            usual = torch.save
            fails = lambda stream: "optim_1" in stream.name  # noqa: E731
            monkeypatch.setattr(torch, "save", lambda obj, to: _raise(full) if fails(to) else usual(obj, to))
        elif world.is_rank_zero:
            target = "write_text" if where == "our state" else "write_manifest"
            monkeypatch.setattr(f"versatune_ds.engine.checkpoint.{target}", lambda *_: _raise(full))

    def work(world, run_dir):
        fill(world)
        with pytest.raises(SaveError) as raised:
            save_steps([2])(world, run_dir)
        monkeypatch.undo()
        save_steps([3])(world, run_dir)
        return str(raised.value)

    first, second = run(work, tmp_path, "full")
    failing, other = (second, first) if where == "DeepSpeed's file" else (first, second)
    assert "No space left on device" in failing
    assert other == "another rank could not write its files"
    assert [path.name for path in complete_checkpoints(tmp_path / "run")] == ["step_00000003", "step_00000001"]
    assert not list((tmp_path / "run" / "checkpoints").glob("*.partial"))


def _raise(error):
    raise error


def test_a_run_without_checkpoints_has_no_newest_one(tmp_path):
    assert find(tmp_path, "found") == [None, None]
