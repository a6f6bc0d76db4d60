"""The optimizer is that of the recipe; matrices decay, vectors and frozen parameters do not."""

import os

import pytest
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam

from versatune_ds.config import TrainConfig
from versatune_ds.engine import optimizer
from versatune_ds.engine.optimizer import build_optimizer, parameter_groups


def tiny_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2), torch.nn.Linear(2, 2))


def build(model, name):
    train = TrainConfig(steps=10, optimizer=name, learning_rate=0.1, weight_decay=0.1)
    return build_optimizer(model, train=train, ds_config={}, device=torch.device("cpu"))


def test_weight_decay_spares_biases_norms_and_frozen_parameters():
    model = tiny_model()
    model[2].weight.requires_grad = False
    decayed, spared = parameter_groups(model, weight_decay=0.1)
    assert ([p.shape for p in decayed["params"]], decayed["weight_decay"]) == ([torch.Size([2, 3])], 0.1)
    assert (len(spared["params"]), spared["weight_decay"]) == (4, 0.0)


@pytest.mark.slow
def test_deepspeeds_adam_takes_the_same_steps_as_pytorchs():
    """In fp32 to 1e-6, its operator compiled here."""
    models = {name: tiny_model() for name in ("adamw", "deepspeed_adam")}
    optimizers = {name: build(model, name) for name, model in models.items()}
    assert isinstance(optimizers["adamw"], torch.optim.AdamW)
    assert isinstance(optimizers["deepspeed_adam"], DeepSpeedCPUAdam)
    for _ in range(3):
        for name, model in models.items():
            optimizers[name].zero_grad()
            model(torch.ones(4, 3)).square().sum().backward()
            optimizers[name].step()
    for ours, theirs in zip(models["deepspeed_adam"].parameters(), models["adamw"].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_an_operator_that_cannot_be_compiled_gives_one_error_line_with_an_alternative(monkeypatch):
    def fail(*arguments, **settings):
        raise RuntimeError("Ninja is required to load C++ extensions\nand more")

    monkeypatch.setattr(optimizer, "DeepSpeedCPUAdam", fail)
    with pytest.raises(ValueError, match=r"^train\.optimizer: deepspeed_adam .*Ninja is.*or use adamw$") as error:
        build(tiny_model(), "deepspeed_adam")
    assert len(str(error.value).splitlines()) == 1


class Recorded:
    """Stand in for an optimizer: keep what it was made with."""

    def __init__(self, groups, **settings):
        self.settings, self.arch_list = settings, os.environ.get("TORCH_CUDA_ARCH_LIST")


@pytest.mark.parametrize(
    ("device", "zero", "is_fused"),
    [
        ("cuda", {"stage": 2}, True),
        ("cuda", {"stage": 2, "offload_optimizer": {"device": "cpu"}}, False),
        ("cpu", {"stage": 2}, False),
    ],
)
def test_adamw_is_fused_where_its_state_is_on_a_gpu_and_never_on_a_cpu(device, zero, is_fused, monkeypatch):
    monkeypatch.setattr(torch.optim, "AdamW", Recorded)
    train = TrainConfig(steps=10)
    made = build_optimizer(
        tiny_model(), train=train, ds_config={"zero_optimization": zero}, device=torch.device(device)
    )
    assert made.settings.get("fused", False) is is_fused


def test_the_fused_form_takes_the_steps_of_the_plain_one_within_rounding():
    """PyTorch has the fused form for CPUs too; only here is it used on one."""
    weights = [torch.nn.Parameter(torch.linspace(-1, 1, 1000)) for _ in range(2)]
    optimizers = [torch.optim.AdamW([p], lr=0.01, fused=f) for p, f in zip(weights, (True, False), strict=True)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        gradient = torch.randn(1000, generator=generator)
        for weight, one in zip(weights, optimizers, strict=True):
            weight.grad = gradient.clone()
            one.step()
    torch.testing.assert_close(*weights, atol=5e-7, rtol=0)


@pytest.mark.parametrize(
    ("given", "readable"), [("9.0a", "9.0"), ("8.0;9.0a+PTX", "8.0;9.0+PTX"), ("8.6 10.0f", "8.6 10.0"), ("9.0", "9.0")]
)
def test_deepspeeds_builder_gets_architectures_that_it_can_read(given, readable, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", given)
    monkeypatch.setattr(optimizer, "FusedAdam", Recorded)
    train = TrainConfig(steps=10, optimizer="deepspeed_adam")
    made = build_optimizer(tiny_model(), train=train, ds_config={}, device=torch.device("cuda"))
    assert made.arch_list == readable
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == given


def test_an_architecture_that_cannot_be_read_is_one_line_with_the_variable(monkeypatch):
    def read(groups, **settings):
        return [int(part) for part in os.environ["TORCH_CUDA_ARCH_LIST"].split(".")]

    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    monkeypatch.setattr(optimizer, "FusedAdam", read)
    train = TrainConfig(steps=10, optimizer="deepspeed_adam")
    expected = r"^train\.optimizer: deepspeed_adam .*invalid literal.*TORCH_CUDA_ARCH_LIST is 'Hopper'.* or use adamw$"
    with pytest.raises(ValueError, match=expected):
        build_optimizer(tiny_model(), train=train, ds_config={}, device=torch.device("cuda"))
