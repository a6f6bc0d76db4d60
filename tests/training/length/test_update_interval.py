"""How often a short run is updated where its recipe does not say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import tiny_config

from versatune_ds.config import MixtureConfig, TrainConfig
from versatune_ds.config.load import parse_config


def interval(num_steps, **mixture):
    return MixtureConfig(**mixture).for_length(num_steps).update_every


@pytest.mark.parametrize(
    ("num_steps", "every"), [(1, 1), (3, 1), (8, 2), (40, 10), (100, 25), (199, 49), (200, 50), (1000, 50)]
)
def test_a_short_run_is_updated_after_every_quarter_of_its_steps(num_steps, every):
    assert interval(num_steps) == every
    assert interval(num_steps, update_every=50) == 50
    assert interval(num_steps, policy="versatune", paper=True, reference={"start_fraction": 0.5}) == 50


@given(num_steps=st.integers(2, 10_000))
def test_a_run_of_two_steps_or_more_is_updated_before_its_last_one(num_steps):
    assert 1 <= interval(num_steps) <= 50
    assert (num_steps - 1) // interval(num_steps) >= 1


def test_the_interval_follows_the_length_of_the_run_until_the_recipe_gives_one(tmp_path):
    values = tiny_config(tmp_path).model_dump(mode="json", exclude_unset=True)
    del values["mixture"]["update_every"]
    config = parse_config(values)
    assert config.mixture.update_every == 3
    assert "update_every" not in config.model_dump(exclude_unset=True)["mixture"]
    assert config.with_train(TrainConfig(steps=80)).mixture.update_every == 20
    assert tiny_config(tmp_path).with_train(TrainConfig(steps=80)).mixture.update_every == 4
    in_epochs = parse_config({**values, "train": {"epochs": 2}})
    assert in_epochs.mixture.update_every == 50
    assert in_epochs.with_train(TrainConfig(steps=8)).mixture.update_every == 2
