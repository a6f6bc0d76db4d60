"""A length in epochs becomes one in steps once the data are known; a run keeps the steps that it began with."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
from fake_shards import fake_domain
from hypothesis import given
from hypothesis import strategies as st

from versatune_ds.config import TrainConfig
from versatune_ds.config.load import load_config, parse_config
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.offline.outlook import Supply
from versatune_ds.training.length.run_length import steps_of_epochs, with_steps

DOMAINS = DomainSet(("law", "code"))
SUPPLY = Supply(sizes_K=np.array([100.0, 300.0]), units_per_step=40.0)
DATA = SimpleNamespace(
    domain_set=DOMAINS, train=(fake_domain(0, [10] * 10, name="law"), fake_domain(1, [30] * 10, name="code"))
)
"""100 and 300 tokens."""


def recipe(train, **sections):
    return {
        "run": {"name": "r"},
        "model": {"from_config": {"model_type": "llama"}},
        "data": {"synthetic": {}, "row_tokens": 20},
        "mixture": {"policy": "uniform"},
        "train": {"rows_per_batch": 2, **train},
        **sections,
    }


@pytest.mark.parametrize(
    ("epochs", "of", "law_weight", "expected"),
    [
        (1, "all", 0.5, 10), (3, "all", 0.9, 30), (0.5, "all", 0.1, 5), (0.51, "all", 0.5, 6), (0.001, "all", 0.5, 1),
        (1, "smallest", 0.5, 5), (2, "smallest", 0.25, 20), (1, "smallest", 0.6, 5),
    ],
)  # fmt: skip
def test_epochs_of_all_data_or_of_the_smallest_domain_are_steps_rounded_up(epochs, of, law_weight, expected):
    train = TrainConfig(epochs=epochs, epochs_of=of)
    weights_K = np.array([law_weight, 1 - law_weight])
    steps, words = steps_of_epochs(train, supply=SUPPLY, weights_K=weights_K, domain_set=DOMAINS)
    assert steps == expected
    assert ("law" in words) == (of == "smallest")


@given(epochs=st.integers(1, 50), steps_per_epoch=st.integers(1, 10**6), units=st.floats(0.001, 1e6))
def test_whole_epochs_of_whole_steps_need_no_step_more(epochs, steps_per_epoch, units):
    supply = Supply(sizes_K=np.array([steps_per_epoch * units]), units_per_step=units)
    found, _ = steps_of_epochs(
        TrainConfig(epochs=epochs), supply=supply, weights_K=None, domain_set=DomainSet(("law",))
    )
    assert found == epochs * steps_per_epoch


def test_no_number_of_steps_passes_over_a_smallest_domain_of_weight_zero():
    train = TrainConfig(epochs=1, epochs_of="smallest")
    with pytest.raises(ValueError, match=r"^train\.epochs_of: smallest: the smallest domain, law, has weight 0"):
        steps_of_epochs(train, supply=SUPPLY, weights_K=np.array([0.0, 1.0]), domain_set=DOMAINS)


def test_the_resolved_config_has_steps_says_where_they_come_from_and_is_read_back(caplog):
    caplog.set_level(logging.INFO, logger="versatune_ds")
    config = with_steps(parse_config(recipe({"epochs": 3})), DATA)
    assert (config.train.steps, config.train.epochs, config.train.steps_from) == (30, None, "3 epochs of all data")
    assert caplog.messages == ["train.epochs: 3 epochs of all data = 30 steps (one is 10.0 steps over all data)"]
    assert parse_config(config.model_dump(mode="json")).train == config.train
    assert with_steps(config, DATA) is config


def test_the_smallest_domain_is_counted_at_the_weight_that_training_starts_with():
    config = with_steps(parse_config(recipe({"epochs": 2, "epochs_of": "smallest"})), DATA)
    assert (config.train.steps, config.train.steps_from) == (10, "2 epochs of the smallest domain")


def test_a_run_that_resumes_keeps_its_steps_though_its_data_changed(caplog):
    caplog.set_level(logging.INFO, logger="versatune_ds")
    recorded = TrainConfig(steps=25, steps_from="3 epochs of all data")
    assert with_steps(parse_config(recipe({"epochs": 3})), DATA, recorded=recorded).train.steps == 25
    assert caplog.messages[-1].endswith("= 25 steps, as the run began; of the data as they are now they would be 30")
    assert with_steps(parse_config(recipe({"epochs": 4})), DATA, recorded=recorded).train.steps == 40


def test_a_warm_up_that_is_longer_than_the_epochs_is_refused_once_they_are_counted():
    with pytest.raises(ValueError, match=r"^train\.warmup_steps: 50: expected fewer than train\.steps=30"):
        with_steps(parse_config(recipe({"epochs": 3, "warmup_steps": 50})), DATA)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({}, r"^train\.steps: missing; give the length of the run in optimizer steps, or in passes .*train\.epochs=3"),
        ({"steps": 5, "epochs": 1}, r"^train\.epochs: 1, and train\.steps is 5: both are the length .*; leave one of"),
        ({"epochs": 1, "steps_from": "1 epoch of all data"}, r"^train\.steps_from: only a run writes it"),
        ({"epochs": 0}, r"^train\.epochs: expected more than 0"),
        ({"epochs": 1, "epochs_of": "law"}, r"^train\.epochs_of: expected 'all' or 'smallest'"),
    ],
)
def test_a_length_that_is_missing_or_given_twice_is_refused_in_one_line(train, message):
    with pytest.raises(ValueError, match=message) as raised:
        parse_config(recipe(train))
    assert "\n" not in str(raised.value)


def test_an_override_of_one_form_of_the_length_takes_the_place_of_the_other():
    """A trial of a few steps of a recipe with epochs, and epochs instead of what a run recorded."""
    in_epochs, of_a_run = recipe({"epochs": 3}), recipe({"steps": 30, "steps_from": "3 epochs of all data"})
    trial = load_config(in_epochs, ["train.steps=2"]).train
    assert (trial.steps, trial.epochs) == (2, None)
    longer = load_config(of_a_run, ["train.epochs=4"]).train
    assert (longer.steps, longer.epochs, longer.steps_from) == (None, 4, None)
    assert load_config(of_a_run, ["train.steps=60"]).train.steps_from is None
    assert load_config(of_a_run, ["train.epochs=null"]).train.steps == 30
    with pytest.raises(ValueError, match=r"^train\.epochs: 3, and train\.steps is 2: both"):
        load_config(in_epochs, ["train.steps=2", "train.epochs=3"])
