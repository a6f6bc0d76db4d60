"""The learning rate is a function of the step; matrices decay, vectors do not."""

import pytest
import torch

from versatune_ds.config import TrainConfig
from versatune_ds.training.engine import learning_rate_at, parameter_groups


def rates(schedule, *, steps=100, warmup=0.1):
    train = TrainConfig(
        steps=steps, learning_rate=1.0, learning_rate_schedule=schedule, warmup_fraction=warmup,
        min_learning_rate_fraction=0.2,
    )  # fmt: skip
    return [learning_rate_at(step, train) for step in range(1, steps + 1)]


@pytest.mark.parametrize(
    ("schedule", "middle", "last"), [("cosine", 0.6, 0.2), ("linear", 0.6, 0.2), ("constant", 1, 1)]
)
def test_the_rate_rises_to_its_peak_and_ends_where_it_should(schedule, middle, last):
    values = rates(schedule)
    assert values[0] == pytest.approx(0.1)
    assert max(values) == values[9] == 1.0
    assert values[54] == pytest.approx(middle)
    assert values[-1] == pytest.approx(last)


def test_no_warm_up_starts_near_the_peak():
    assert rates("linear", warmup=0.0)[0] == pytest.approx(1 - 0.8 / 100)


def test_weight_decay_spares_biases_norms_and_frozen_parameters():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2), torch.nn.Linear(2, 2))
    model[2].weight.requires_grad = False
    decayed, spared = parameter_groups(model, weight_decay=0.1)
    assert ([p.shape for p in decayed["params"]], decayed["weight_decay"]) == ([torch.Size([2, 3])], 0.1)
    assert (len(spared["params"]), spared["weight_decay"]) == (4, 0.0)
