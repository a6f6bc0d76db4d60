"""Every workaround for DeepSpeed names the test that fails without it."""

import math
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ranks import run_ranks

from versatune_ds.engine import deepspeed_quirks
from versatune_ds.engine.deepspeed_quirks import drop_nonfinite_gradients, ignore_renamed_torch_functions
from versatune_ds.engine.engine import share_process_group

ROOT = Path(__file__).parents[2]
NAMED_TESTS = re.findall(r"Test: (\S+)::(\w+)", Path(deepspeed_quirks.__file__).read_text(encoding="utf-8"))


@pytest.mark.parametrize(("file", "name"), sorted(set(NAMED_TESTS)))
def test_the_test_that_a_workaround_names_exists(file, name):
    assert f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8")


def test_every_public_workaround_names_a_test():
    public = [value for name, value in vars(deepspeed_quirks).items() if not name.startswith("_")]
    own = [value for value in public if getattr(value, "__module__", None) == deepspeed_quirks.__name__]
    assert len(own) >= 10
    assert [value for value in own if "Test: tests/" not in value.__doc__] == []


def test_no_operator_is_built_for_collectives_on_the_cpu(tmp_path, monkeypatch):
    def refuse(builder, verbose=True):
        raise AssertionError("DeepSpeed builds its shared-memory operator")

    monkeypatch.setattr("deepspeed.ops.op_builder.cpu.comm.ShareMemCommBuilder.load", refuse)
    assert run_ranks(lambda world: share_process_group(), world_size=2, folder=tmp_path) == [None, None]


def test_warnings_about_renamed_functions_of_torch_are_hidden():
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        ignore_renamed_torch_functions()
        for module in ("torch.distributed.nn", "versatune_ds.engine"):
            warnings.warn_explicit("renamed", FutureWarning, f"{module}.py", 1, module=module)
    assert [warning.filename for warning in shown] == ["versatune_ds.engine.py"]


def test_the_gradient_norm_is_kept_where_deepspeed_keeps_none():
    module = torch.nn.Linear(2, 1, bias=False)
    module.weight.grad = torch.tensor([[3.0, 4.0]])
    engine = SimpleNamespace(optimizer=SimpleNamespace(), module=module)
    assert drop_nonfinite_gradients(engine)
    assert float(engine._global_grad_norm) == 5.0
    module.weight.grad[0, 0] = math.nan
    assert not drop_nonfinite_gradients(engine)
    assert module.weight.grad is None
