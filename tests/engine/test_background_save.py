"""A checkpoint that is written while training continues: a copy of the moment, complete or absent, the same files."""

import collections
import errno
import json
import threading
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import run_ranks

from versatune_ds.distributed import texts_of_ranks
from versatune_ds.engine.background_save import start_save
from versatune_ds.engine.checkpoint import NewCheckpoint, save_checkpoint, write_file
from versatune_ds.engine.snapshot import take_snapshot
from versatune_ds.run_folder.checkpoint_files import CheckedStream, check_valid, complete_checkpoints, read_state


class FakeEngine:
    """Stand-in for DeepSpeed's engine: writes a file a rank through its checkpoint engine, and copies one by itself."""

    def __init__(self, rank):
        self.rank, self.values = rank, torch.arange(1000.0) + rank

    def save_checkpoint(self, save_dir, *, tag, client_state, save_latest, exclude_frozen_parameters):
        folder = Path(save_dir) / tag
        self.checkpoint_engine.save({"values": self.values}, str(folder / f"model_{self.rank}.pt"))
        (folder / f"swapped_{self.rank}").write_bytes(b"state on NVMe")


def new_checkpoint(world, run_dir, *, step, keep=2):
    return NewCheckpoint(run_dir=run_dir, step=step, state={"step": step}, keep=keep, world=world)


def run(work, tmp_path, world_size=2):
    (tmp_path / "results").mkdir()
    return run_ranks(lambda world: work(world, tmp_path / "run"), world_size=world_size, folder=tmp_path / "results")


def files_of(run_dir, step):
    folder = run_dir / "checkpoints" / f"step_{step:08d}"
    check_valid(folder)
    return json.loads((folder / "MANIFEST").read_text())["files"]


def test_a_background_save_has_the_files_of_an_ordinary_one_and_of_its_moment(tmp_path, monkeypatch):
    def work(world, run_dir):
        engine, may_write, usual = FakeEngine(world.rank), threading.Event(), torch.save
        save_checkpoint(engine, new_checkpoint(world, run_dir / "ordinary", step=1))
        monkeypatch.setattr(torch, "save", lambda values, to: (may_write.wait(30), usual(values, to)))
        save = start_save(engine, new_checkpoint(world, run_dir / "background", step=1))
        was_busy = save.is_busy
        engine.values += 1  # the next step
        may_write.set()
        outcome = save.wait()
        return was_busy, outcome.failure, outcome.folder.name, save.is_busy

    assert run(work, tmp_path) == [(True, None, "step_00000001", False)] * 2
    ordinary, background = (files_of(tmp_path / "run" / name, 1) for name in ("ordinary", "background"))
    assert sorted(background) == ["model_0.pt", "model_1.pt", "swapped_0", "swapped_1", "versatune.json"]
    assert background == ordinary
    assert read_state(complete_checkpoints(tmp_path / "run" / "background")[0]) == {"step": 1}


def test_a_background_save_is_published_once_all_ranks_have_written_and_deletes_the_oldest(tmp_path, monkeypatch):
    def work(world, run_dir):
        engine = FakeEngine(world.rank)
        for step in (1, 2, 3):
            save = start_save(engine, new_checkpoint(world, run_dir, step=step))
            assert not list((run_dir / "checkpoints").glob(f"step_{step:08d}"))
            assert save.advance() is None  # all have written, rank 0 publishes
            assert save.advance().failure is None
        return [path.name for path in complete_checkpoints(run_dir)]

    assert run(work, tmp_path) == [["step_00000003", "step_00000002"]] * 2


@pytest.mark.parametrize("where", ["a file of rank 1", "the manifest"])
def test_a_background_save_that_fails_leaves_the_checkpoint_before_it(tmp_path, monkeypatch, where):
    full = OSError(errno.ENOSPC, "No space left on device")

    def fail(*_):
        raise full

    def work(world, run_dir):
        engine = FakeEngine(world.rank)
        assert start_save(engine, new_checkpoint(world, run_dir, step=1)).wait().failure is None
        if where == "the manifest":
            monkeypatch.setattr("versatune_ds.engine.checkpoint.write_manifest", fail)
        elif world.rank == 1:
            monkeypatch.setattr(torch, "save", fail)
        failure = start_save(engine, new_checkpoint(world, run_dir, step=2)).wait().failure
        monkeypatch.undo()
        assert start_save(engine, new_checkpoint(world, run_dir, step=3)).wait().failure is None
        return failure

    rank = "" if where == "the manifest" else "rank 1: "
    assert run(work, tmp_path) == [f"{rank}[Errno 28] No space left on device"] * 2
    assert [path.name for path in complete_checkpoints(tmp_path / "run")] == ["step_00000003", "step_00000001"]
    assert not list((tmp_path / "run" / "checkpoints").glob("*.partial"))


def test_a_background_save_that_is_abandoned_ends_and_stays_incomplete(tmp_path, monkeypatch):
    may_write, usual = threading.Event(), torch.save
    monkeypatch.setattr(torch, "save", lambda values, to: (may_write.wait(30), usual(values, to)))

    def work(world, run_dir):
        save = start_save(FakeEngine(world.rank), new_checkpoint(world, run_dir, step=1))
        threading.Timer(0.1, may_write.set).start()
        save.abandon()
        return save.is_busy, [path.name for path in complete_checkpoints(run_dir)]

    assert run(work, tmp_path, world_size=1) == [(False, [])]
    assert not (tmp_path / "run" / "checkpoints" / "step_00000001.partial" / "versatune.json").exists()


def test_a_snapshot_keeps_shared_memory_strides_and_attributes_and_nothing_that_changes():
    class Scaler:
        scale = 2.0

    flat, scaler = torch.arange(12.0), Scaler()
    scaler.scale = 4.0
    state = collections.OrderedDict(
        flat=flat, view=flat[3:9].view(2, 3).t(), frozen=torch.nn.Parameter(flat[:2], False)
    )
    state._metadata = {"version": 1}
    values = {
        "module": state,
        "groups": [(flat[1:2], 7)],
        "scaler": scaler,
        "bits": torch.tensor([3], dtype=torch.int8),
    }
    copied = take_snapshot(values)
    flat.zero_()
    scaler.scale = 8.0
    module = copied["module"]
    assert module["flat"].tolist() == list(range(12))
    assert module["view"].tolist() == [[3, 6], [4, 7], [5, 8]]
    assert module["view"].stride() == (1, 3)
    assert module["view"].untyped_storage()._cdata == module["flat"].untyped_storage()._cdata
    assert copied["groups"][0][0].untyped_storage()._cdata == module["flat"].untyped_storage()._cdata
    assert type(module["frozen"]) is torch.nn.Parameter
    assert not module["frozen"].requires_grad
    assert module._metadata == {"version": 1}
    assert (copied["scaler"].scale, copied["groups"][0][1], copied["bits"].dtype) == (4.0, 7, torch.int8)


@settings(max_examples=30, deadline=None)
@given(pieces=st.lists(st.binary(max_size=50), max_size=8), block=st.integers(1, 60))
def test_size_and_checksum_of_a_written_file_are_those_of_its_bytes(tmp_path_factory, pieces, block):
    path = tmp_path_factory.mktemp("stream") / "file"
    with pytest.MonkeyPatch.context() as patch, CheckedStream(path) as stream:
        patch.setattr("versatune_ds.run_folder.checkpoint_files._BLOCK_BYTES", block)
        for piece in pieces:
            assert stream.write(memoryview(piece)) == len(piece)
        entry = stream.finish()
    content = path.read_bytes()
    assert content == b"".join(pieces)
    assert entry == [len(content), zlib.crc32(content)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_reported_as_such_and_not_as_a_position_in_the_file():
    with pytest.raises(OSError, match="No space left on device"):
        write_file({"values": torch.zeros(100_000)}, Path("/dev/full"))


def test_every_rank_receives_the_texts_of_all(tmp_path):
    texts = ["", "länger" * 2000, "c"]
    assert run(lambda world, _: texts_of_ranks(texts[world.rank], world), tmp_path, world_size=3) == [texts] * 3
