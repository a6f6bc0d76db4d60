"""A save that fails at the end of a run: the message has what is kept, and what a new start does."""

from types import SimpleNamespace

import pytest
from tiny_run import tiny_config

from versatune_ds.distributed import World
from versatune_ds.engine import saving
from versatune_ds.engine.checkpoint import SaveError
from versatune_ds.run_folder.disk_errors import DiskError
from versatune_ds.run_folder.names import checkpoint_folder


@pytest.mark.parametrize(
    ("kept", "end"),
    [
        (10, "the newest complete checkpoint is step_00000010. Free disk space and start again to resume from it"),
        (None, "there is no complete checkpoint. Free disk space and start again; the run then begins at step 1"),
    ],
)
def test_after_a_failed_last_save_a_start_resumes_only_where_there_is_a_checkpoint(tmp_path, monkeypatch, kept, end):
    def fail(*unused):
        raise SaveError("no space left")

    config = tiny_config(tmp_path)
    if kept is not None:
        folder = checkpoint_folder(config.run_dir, step=kept)
        folder.mkdir(parents=True)
        (folder / "MANIFEST").write_text("{}")
    monkeypatch.setattr(saving, "save_checkpoint", fail)
    engine = SimpleNamespace(deepspeed_engine=None)
    writer = saving.Saving(config=config, world=World(), engine=engine, best=None, only_trained=False)
    with pytest.raises(DiskError) as raised:
        writer.save(step=12, state={}, is_last=True)
    assert str(raised.value) == f"step 12 could not be saved (no space left); {end}"
