"""A checkpoint is whole or does not count; a broken one is named and the one before is used."""

import json

import pytest
from ranks import run_ranks

from versatune_ds.training.checkpoint import newest_sound_checkpoint, read_state, save_checkpoint, whole_checkpoints


class FakeEngine:
    """Write two files a rank, as DeepSpeed does, without a model."""

    def __init__(self, rank, *, dies=False):
        self.rank, self.dies = rank, dies

    def save_checkpoint(self, save_dir, *, tag, client_state, save_latest):
        from pathlib import Path

        assert client_state == {}
        (Path(save_dir) / tag / f"rank_{self.rank}.pt").write_bytes(bytes([self.rank]) * 1000)
        if self.dies:
            raise KeyboardInterrupt


def save_steps(steps, *, keep=10):
    def work(world, run_dir):
        for step in steps:
            save_checkpoint(
                FakeEngine(world.rank), run_dir=run_dir, step=step, state={"step": step}, keep=keep, world=world
            )

    return work


def run(work, tmp_path, name="results", world_size=2):
    (tmp_path / name).mkdir()
    run_dir = tmp_path / "run"
    return run_ranks(lambda world: work(world, run_dir), world_size=world_size, folder=tmp_path / name)


def find(tmp_path, name):
    return run(lambda world, run_dir: newest_sound_checkpoint(run_dir, world), tmp_path, name)


def test_the_manifest_names_every_file_and_the_newest_is_found(tmp_path):
    run(save_steps([1, 2]), tmp_path)
    newest = whole_checkpoints(tmp_path / "run")[0]
    assert newest.name == "step_00000002"
    files = json.loads((newest / "MANIFEST").read_text())["files"]
    assert sorted(files) == ["rank_0.pt", "rank_1.pt", "versatune.json"]
    assert files["rank_1.pt"][0] == 1000
    assert read_state(newest) == {"step": 2}
    assert (newest.parent / "latest").read_text() == "step_00000002\n"


def test_only_the_newest_are_kept(tmp_path):
    run(save_steps([1, 2, 3, 4], keep=2), tmp_path)
    assert [path.name for path in whole_checkpoints(tmp_path / "run")] == ["step_00000004", "step_00000003"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_broken_file_is_found_by_the_rank_that_reads_it_and_the_one_before_is_used(tmp_path, damage):
    run(save_steps([1, 2]), tmp_path)
    path = tmp_path / "run" / "checkpoints" / "step_00000002" / "rank_1.pt"
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content if damage == "flip" else content[:999])
    if damage == "remove":
        path.unlink()
    for found in find(tmp_path, "found"):
        assert found.name == "step_00000001"


def test_a_save_that_was_killed_does_not_count_and_the_next_one_clears_it(tmp_path):
    run(save_steps([1]), tmp_path)

    def die(world, run_dir):
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(FakeEngine(world.rank, dies=True), run_dir=run_dir, step=2, state={}, keep=2, world=world)

    run(die, tmp_path, "dying")
    assert (tmp_path / "run" / "checkpoints" / "step_00000002.partial").is_dir()
    assert [found.name for found in find(tmp_path, "found")] == ["step_00000001"] * 2
    run(save_steps([2]), tmp_path, "again")
    assert [found.name for found in find(tmp_path, "found_again")] == ["step_00000002"] * 2


def test_without_a_checkpoint_there_is_none(tmp_path):
    assert find(tmp_path, "found") == [None, None]
