"""Every workaround for DeepSpeed names the test that fails without it."""

import functools
import math
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from host_reads import counted_reads
from one_batch import make_engine, micro_batches
from ranks import run_ranks

from versatune_ds.engine import checkpoint_quirks, deepspeed_quirks
from versatune_ds.engine import engine as engine_module
from versatune_ds.engine.deepspeed_quirks import drop_nonfinite_gradients, ignore_renamed_torch_functions
from versatune_ds.engine.engine import share_process_group
from versatune_ds.kernels.build import load_kernels

ROOT = Path(__file__).parents[2]
MODULES = (deepspeed_quirks, checkpoint_quirks)
TEXTS = [Path(module.__file__).read_text(encoding="utf-8") for module in MODULES]
NAMED_TESTS = re.findall(r"Test: (\S+)::(\w+)", "".join(TEXTS))


@pytest.mark.parametrize(("file", "name"), sorted(set(NAMED_TESTS)))
def test_the_test_that_a_workaround_names_exists(file, name):
    assert f"\ndef {name}(" in (ROOT / file).read_text(encoding="utf-8")


def test_every_public_workaround_names_a_test():
    public = [(module, value) for module in MODULES for name, value in vars(module).items() if name[0] != "_"]
    own = [value for module, value in public if getattr(value, "__module__", None) == module.__name__]
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


def steps_with_reads(world, *, stage, precision):
    """Take three steps of four micro-steps, the second with a gradient of NaN; return weights, norms and reads."""
    load_kernels("cpu")  # tries them on one token, whose loss it reads; a run does that before its first step
    engine = make_engine(world, zero={"stage": stage}, precision=precision)
    batches = micro_batches("packed", world=world, rows_per_micro_batch=1)
    found = []
    for number in (1, 2, 3):
        with counted_reads() as reads:
            result = engine.train_step(batches, step=number, is_refused=None if number != 2 else lambda *loss: True)
        weights = [part.detach().double().sum().item() for part in engine.deepspeed_engine.module.parameters()]
        found.append((result.is_applied, engine.grad_norm(), weights, dict(reads)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "precision"), [(1, "bf16"), (2, "bf16"), (2, "fp32")])
def test_a_step_reads_the_device_once_and_trains_to_the_same_bits(stage, precision, tmp_path, monkeypatch):
    """The one wait is for the norm's copy on the host; the judgements counted here read that copy."""

    def trained(folder):
        (tmp_path / folder).mkdir()
        work = functools.partial(steps_with_reads, stage=stage, precision=precision)
        return run_ranks(work, world_size=1, folder=tmp_path / folder)[0]

    ours = trained("ours")
    monkeypatch.setattr(engine_module, "read_norm_once", lambda deepspeed_engine: None)
    deepspeeds = trained("deepspeeds")
    assert [step[:3] for step in ours] == [step[:3] for step in deepspeeds]
    assert [is_applied for is_applied, *_ in ours] == [True, False, True]
    # On the CPU AdamW is not fused and reads its own counts; transformers reads its mask, once a micro-step.
    expected = {"is_invalid_grad_norm": 3, "_optimizer_step": 2, "find_packed_sequence_indices": 4}
    assert ours[0][3] == ours[2][3] == expected
    assert deepspeeds[0][3] == {**expected, **({"has_overflow": 1} if precision == "bf16" else {})}
