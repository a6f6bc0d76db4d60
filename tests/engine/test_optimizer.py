"""The optimizer is that of the recipe; matrices decay, vectors and frozen parameters do not."""

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
