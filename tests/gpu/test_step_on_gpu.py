"""One training step on a GPU: how often it waits for the device, and which optimizer takes it."""

import os
import warnings

import pytest
import torch

pytest.importorskip("deepspeed")
pytest.importorskip("transformers")

from one_batch import make_engine, micro_batches
from tiny_models import A, B, C, build_arguments, make_model, pack

from versatune_ds.config import ModelConfig
from versatune_ds.distributed import World, free_port, join_world, leave_world
from versatune_ds.model.build import build_causal_lm
from versatune_ds.model.fused_layers import fuse_layers

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def world():
    """Join a world of this process alone."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), LOCAL_SIZE="1")
    alone = World(rank=0, world_size=1, local_rank=0, launcher="test")
    join_world(alone, device=torch.device("cuda", 0))
    yield alone
    leave_world()


def waits_of(call):
    """Return (file, line) of every operation in a call that makes the host wait for the device."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [(line.filename, line.lineno) for line in shown if "synchronizing CUDA operation" in str(line.message)]


@pytest.mark.parametrize("stage", [1, 2])
def test_a_step_of_four_micro_steps_waits_for_the_device_once(world, stage):
    """For the gradient norm; a mask that transformers builds from positions may wait once a micro-step more."""
    engine = make_engine(world, zero={"stage": stage}, precision="bf16", device="cuda")
    batches = micro_batches("packed", world=world, rows_per_micro_batch=1)
    for number in (1, 2, 3):  # compiles, allocates, makes the optimizer's state
        engine.train_step(batches, step=number)
    waits = waits_of(lambda: engine.train_step(batches, step=4))
    ours = [wait for wait in waits if "masking_utils" not in wait[0]]
    assert len(ours) == 1, ours
    assert ours[0][0].endswith("deepspeed_quirks.py")
    engine.close()


def test_adamw_is_fused_on_a_gpu_and_steps_as_the_plain_form_does(world):
    """Within fp32 rounding: after twenty steps of 1e-2 by the same gradients."""
    engine = make_engine(world, zero={"stage": 2}, device="cuda")
    assert all(group["fused"] for group in engine.deepspeed_engine.optimizer.param_groups)
    engine.close()
    weights = [torch.nn.Parameter(torch.linspace(-1, 1, 1000, device="cuda")) for _ in range(2)]
    optimizers = [torch.optim.AdamW([p], lr=0.01, fused=f) for p, f in zip(weights, (True, False), strict=True)]
    for _ in range(20):
        gradient = torch.randn(1000, device="cuda")
        for weight, one in zip(weights, optimizers, strict=True):
            weight.grad = gradient.clone()
            one.step()
    torch.testing.assert_close(*weights, atol=5e-7, rtol=0)


def test_a_model_is_made_on_the_gpu_with_the_same_weights_for_the_same_seed():
    made = [build_causal_lm(**build_arguments("llama"), device=torch.device("cuda")) for _ in range(2)]
    assert {part.device.type for part in made[0].parameters()} == {"cuda"}
    assert all(map(torch.equal, made[0].parameters(), made[1].parameters()))
    other = build_causal_lm(**build_arguments("llama"))
    assert not torch.equal(made[0].lm_head.weight.cpu(), other.lm_head.weight)


def test_a_saved_model_is_loaded_to_the_gpu(tmp_path):
    saved = build_causal_lm(**build_arguments("llama"))
    saved.save_pretrained(tmp_path)
    arguments = {**build_arguments("llama"), "model": ModelConfig(name_or_path=str(tmp_path))}
    loaded = build_causal_lm(**arguments, device=torch.device("cuda"))
    assert {part.device.type for part in (*loaded.parameters(), *loaded.buffers())} == {"cuda"}
    assert all(
        torch.equal(ours.cpu(), theirs) for ours, theirs in zip(loaded.parameters(), saved.parameters(), strict=True)
    )


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_ligers_layers_give_the_losses_and_gradients_of_the_plain_ones(model_type):
    pytest.importorskip("liger_kernel")
    plain, fused = make_model(model_type).cuda(), make_model(model_type).cuda()
    settings = ModelConfig(from_config={"model_type": model_type}, fused_layers="liger")
    fuse_layers(fused.causal_lm, settings, device=torch.device("cuda"))
    batch = {name: tensor.cuda() for name, tensor in pack([A, B, C]).items()}
    with torch.no_grad():
        ours, theirs = (model.eval()(**batch, per_token=True).token_losses_N for model in (fused, plain))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    for model in (plain, fused):
        model.train()(**batch).loss_sum.backward()
    for (name, ours), theirs in zip(fused.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4, msg=name)
