"""Fused layers: only this model's forward functions change, and its losses and gradients are the plain ones."""

import logging
import sys
import types

import pytest
import torch
from tiny_models import A, B, C, make_model, pack, token_losses

from versatune_ds.config import LoraConfig, ModelConfig
from versatune_ds.model import fused_layers
from versatune_ds.model.fused_layers import fuse_layers
from versatune_ds.model.trainable_parameters import choose_what_is_trained

GPU, CPU = torch.device("cuda"), torch.device("cpu")


def recipe(**settings):
    return ModelConfig(from_config={"model_type": "llama"}, **settings)


def rms_norm(X, W, eps, offset=0.0, casting_mode="llama", in_place=True):
    assert (offset, casting_mode, in_place) == (0.0, "llama", False)
    normed = X.float() * torch.rsqrt(X.float().pow(2).mean(-1, keepdim=True) + eps)
    return W * normed.to(X.dtype)


def rope(q, k, cos, sin, position_ids=None, unsqueeze_dim=1):
    def rotated(x):
        first, second = x.chunk(2, dim=-1)
        return x * cos.unsqueeze(unsqueeze_dim) + torch.cat((-second, first), dim=-1) * sin.unsqueeze(unsqueeze_dim)

    return rotated(q), rotated(k)


def swiglu(a, b):
    return torch.nn.functional.silu(a) * b


@pytest.fixture
def liger(monkeypatch):
    """Stand in for liger_kernel: functions of its names and arguments, in plain PyTorch; returns how often each ran."""
    calls = {"liger_rms_norm": 0, "liger_rope": 0, "liger_swiglu": 0}

    def counted(name, function):
        def call(*arguments, **settings):
            calls[name] += 1
            return function(*arguments, **settings)

        return call

    functions = dict(zip(calls, (rms_norm, rope, swiglu), strict=True))
    functional = types.SimpleNamespace(**{name: counted(name, function) for name, function in functions.items()})
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.functional", functional)
    monkeypatch.setattr(fused_layers, "find_spec", lambda name: "installed")
    monkeypatch.setattr(fused_layers, "import_module", sys.modules.get)
    return calls


def gradients(model):
    model.train().zero_grad()
    model(**pack([A, B, C])).loss_sum.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("model_type", fused_layers.FUSED_MODEL_TYPES)
def test_fused_layers_give_the_plain_losses_and_gradients(model_type, liger, caplog):
    """Two layers: two norms each and the last one, in Qwen3 two more for queries and keys."""
    plain, fused = make_model(model_type), make_model(model_type)
    names = list(fused.state_dict())
    with caplog.at_level(logging.INFO, logger="versatune_ds"):
        fuse_layers(fused.causal_lm, recipe(), device=GPU)
    num_norms = 9 if model_type == "qwen3" else 5
    assert caplog.messages == [f"layers: fused by Liger: {num_norms} x RMSNorm, 2 x rotary, 2 x SwiGLU"]
    torch.testing.assert_close(token_losses(fused, [A, B, C]), token_losses(plain, [A, B, C]), atol=1e-6, rtol=0)
    assert liger == {"liger_rms_norm": num_norms, "liger_rope": 2, "liger_swiglu": 2}
    ours, theirs = gradients(fused), gradients(plain)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=1e-5)
    assert list(fused.state_dict()) == names


def test_only_this_model_is_changed(liger):
    """A second model of the type, made before or after, runs as transformers wrote it."""
    before = make_model("llama")
    fuse_layers(make_model("llama").causal_lm, recipe(), device=GPU)
    for model in (before, make_model("llama")):
        token_losses(model, [A])
    assert set(liger.values()) == {0}


def test_adapters_are_trained_through_fused_layers(liger):
    model = make_model("llama")
    settings = recipe(lora=LoraConfig(rank=2))
    choose_what_is_trained(model.causal_lm, settings)
    fuse_layers(model.causal_lm, settings, device=GPU)
    model.train()(**pack([A, B])).loss_sum.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert any("gate_proj.lora_B" in name for name in trained)
    assert any("q_proj.lora_B" in name for name in trained)


@pytest.mark.parametrize(
    ("settings", "device", "model_type", "reason"),
    [
        ({"fused_layers": "none"}, GPU, "llama", "model.fused_layers is none"),
        ({}, CPU, "llama", "the model runs on the CPU"),
        ({"compile": True}, GPU, "llama", "model.compile fuses them"),
        ({}, GPU, "gemma", "model type gemma is none of llama, mistral, qwen2, qwen3"),
    ],
)
def test_layers_that_are_not_fused_are_one_line_with_the_reason(settings, device, model_type, reason, liger, caplog):
    model = make_model(model_type)
    with caplog.at_level(logging.INFO, logger="versatune_ds"):
        fuse_layers(model.causal_lm, recipe(**settings), device=device)
    assert caplog.messages == [f"layers: not fused: {reason}"]
    token_losses(model, [A])
    assert set(liger.values()) == {0}


def test_without_the_library_auto_says_how_to_install_it_and_liger_is_refused(monkeypatch, caplog):
    monkeypatch.setattr(fused_layers, "find_spec", lambda name: None)
    with caplog.at_level(logging.INFO, logger="versatune_ds"):
        fuse_layers(make_model("llama").causal_lm, recipe(), device=GPU)
    assert caplog.messages == ["layers: not fused: liger-kernel is not installed; pip install -e '.[fused]'"]
    with pytest.raises(ValueError, match=r"^model\.fused_layers: liger needs the library liger-kernel; pip install"):
        fuse_layers(make_model("llama").causal_lm, recipe(fused_layers="liger"), device=GPU)


def test_what_was_asked_for_and_cannot_be_is_refused_in_one_line(liger):
    asked = recipe(fused_layers="liger")
    with pytest.raises(ValueError, match=r"^model\.fused_layers: liger needs a GPU; use auto, or leave it out$"):
        fuse_layers(make_model("llama").causal_lm, asked, device=CPU)
    with pytest.raises(ValueError, match=r"^model\.fused_layers: liger is not possible: model type gemma is none of"):
        fuse_layers(make_model("gemma").causal_lm, asked, device=GPU)
    with pytest.raises(ValueError, match=r"model\.fused_layers: model\.compile fuses the layers itself"):
        recipe(fused_layers="liger", compile=True)
