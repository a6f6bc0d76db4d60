"""A checkpoint without frozen weights has the trained ones and the buffers, and loads into the same model alone."""

import pytest
import torch
from torch import nn

from versatune_ds.engine import checkpoint_quirks
from versatune_ds.engine.checkpoint_quirks import load_module, save_files


class Model(nn.Module):
    """One trained and two frozen layers, one of them under two names, and a buffer."""

    def __init__(self):
        super().__init__()
        self.trained, self.frozen = nn.Linear(2, 2), nn.Linear(2, 2)
        self.head = self.frozen
        self.frozen.requires_grad_(False)
        self.register_buffer("count", torch.ones(1))

    def state_dict(self, *arguments, **settings):
        """Add what a layer in 4 bits adds for its frozen weight."""
        return {**super().state_dict(*arguments, **settings), "frozen.weight.absmax": torch.ones(1)}


class Engine:
    """Write as DeepSpeed does: a file of the model, and one of the optimizer."""

    def __init__(self):
        self.module = Model()

    def save_checkpoint(self, folder, *, tag, exclude_frozen_parameters, **_):
        self.excluded = exclude_frozen_parameters
        self.checkpoint_engine.save({"module": self.module.state_dict(), "step": 3}, f"{folder}/{tag}/model.pt")
        self.checkpoint_engine.save({"state": 1}, f"{folder}/{tag}/optimizer.pt")


def test_only_trained_weights_and_buffers_are_written(tmp_path):
    engine = Engine()
    save_files(engine, tmp_path, write=torch.save, only_trained=True)
    written = torch.load(tmp_path / "model.pt")
    assert sorted(written["module"]) == ["count", "trained.bias", "trained.weight"]
    assert (written["step"], engine.excluded) == (3, True)
    assert torch.load(tmp_path / "optimizer.pt") == {"state": 1}
    save_files(engine, tmp_path, write=torch.save)
    assert len(torch.load(tmp_path / "model.pt")["module"]) == 8


def test_trained_weights_load_and_frozen_ones_stay():
    source, model = Model(), Model()
    before = model.frozen.weight.clone()
    saved = {name: value for name, value in source.state_dict().items() if name.startswith(("trained", "count"))}
    load_module(src=saved, dst=model)
    assert torch.equal(model.trained.weight, source.trained.weight)
    assert torch.equal(model.frozen.weight, before)
    for wrong in ({"trained.weight": saved["trained.weight"]}, {**saved, "other": torch.ones(1)}):
        with pytest.raises(
            RuntimeError, match=r"trained weights are not those of the model: (count, trained\.bias|other)$"
        ):
            load_module(src=wrong, dst=model)


def test_what_is_left_out_is_decided_by_who_is_trained_now():
    model = Model()
    model.frozen.requires_grad_(True)
    assert {"head.weight", "frozen.weight"} <= checkpoint_quirks._saved_names(model)
