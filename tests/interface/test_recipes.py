"""Recipes as mappings and configs, and policies as values: what `train`, `simulate` and `prepare` are given."""

import functools
import pickle

import numpy as np
import pytest
import yaml

from tests.helpers.tiny_run import ROOT
from versatune_ds import Policy, load_config, plan, prepare, simulate
from versatune_ds.config.load import load_config_with_policy, recipe_values
from versatune_ds.mixture.policies import POLICIES, name_of, policy_named
from versatune_ds.own_code import is_importable

RECIPE = ROOT / "recipes" / "quickstart.yaml"


def keep(weights_K, signals, step, settings):
    return weights_K


OWN = Policy(name="own", update=keep, uniform_share=0.25, start=lambda start: np.full(start.num_domains, 0.5))


def test_a_mapping_and_a_config_mean_the_same_as_the_file():
    from_file = load_config(RECIPE, ["train.steps=7"])
    values = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    assert load_config(values, ["train.steps=7"]) == from_file
    assert load_config(load_config(RECIPE), ["train.steps=7"]) == from_file
    assert load_config(from_file) is from_file
    assert load_config(recipe_values(from_file)) == from_file


def test_a_mapping_is_not_changed_by_overrides():
    values = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    load_config(values, ["train.steps=7", "mixture.steer.anchor=0.1"])
    assert values == yaml.safe_load(RECIPE.read_text(encoding="utf-8"))


def test_a_mistake_is_the_line_that_the_command_line_prints():
    with pytest.raises(ValueError, match=r"^run\.name: missing; .*\ntrain\.stepz: unknown key; did you mean 'steps'"):
        load_config({**yaml.safe_load(RECIPE.read_text(encoding="utf-8")), "run": {}, "train": {"stepz": 7}})
    with pytest.raises(ValueError, match=r"expected a list of key=value texts; write \['train\.steps=7'\]"):
        load_config(RECIPE, "train.steps=7")


def test_a_policy_is_named_by_what_finds_it_again():
    assert name_of(POLICIES["doremi"]) == "doremi"
    assert name_of(OWN) == f"{__name__}:OWN"
    local = Policy(name="2 of mine", update=functools.partial(keep))
    assert name_of(local) == "__main__:_2_of_mine"
    assert is_importable("my_module:OWN")
    assert not is_importable(name_of(local))


def test_a_policy_of_a_session_that_is_gone_is_refused_with_the_way_out():
    with pytest.raises(
        ValueError, match=r"given as a value in a Python session; put it into a file, and set mixture\.policy=my"
    ):
        policy_named("__main__:GONE_WITH_ITS_SESSION")


def test_a_policy_given_as_a_value_takes_the_place_of_the_recipes_with_its_own_defaults():
    config = load_config_with_policy(load_config(RECIPE), ["train.steps=7"], OWN)
    assert config.mixture.rule is OWN
    assert config.mixture.policy == f"{__name__}:OWN"
    assert config.mixture.prior_uniform_share is None, "steer's 0.5 was filled in before"
    assert load_config(RECIPE).mixture.rule is POLICIES["steer"]


def test_a_given_policy_stays_through_copies_and_overrides_until_another_is_named():
    config = load_config_with_policy(RECIPE, [], Policy(name="local", update=keep))
    rule = config.mixture.rule
    assert load_config(config, ["train.steps=7"]).mixture.rule is rule
    assert config.model_copy(update={"train": config.train}).mixture.rule is rule
    assert load_config(config, ["mixture.policy=uniform"]).mixture.rule is POLICIES["uniform"]
    built_in = load_config_with_policy(RECIPE, [], POLICIES["odm"])
    assert pickle.loads(pickle.dumps(built_in)) == built_in, "what a name finds again needs no value"


def test_what_is_no_policy_is_refused():
    with pytest.raises(ValueError, match=r"^policy: expected a versatune_ds\.Policy, got function"):
        load_config_with_policy(RECIPE, [], keep)


def test_a_simulation_decides_with_the_given_policy_on_the_prepared_data(tmp_path):
    """Weights (1/6, ...) and a rule that moves all to equal parts of 1/2 to the first domain: exact numbers."""

    def half_to_the_first(weights_K, signals, step, settings):
        rest = np.full(len(weights_K), 0.5 / (len(weights_K) - 1))
        rest[0] = 0.5
        return rest

    overrides = [
        f"run.output_dir={tmp_path}", "data.synthetic.num_rows=30", "model.tokenizer_vocab_size=512",
        "mixture.prior=uniform", "mixture.safeguards.max_kl=null",
    ]  # fmt: skip
    local = Policy(name="half_to_the_first", update=half_to_the_first)
    simulation = simulate(RECIPE, overrides=overrides, policy=local, steps=100, quiet=True)
    assert simulation.weights.iloc[0].tolist() == pytest.approx([1 / 6] * 6)
    assert simulation.weights.iloc[-1].tolist() == pytest.approx([0.5] + [0.1] * 5)
    assert simulation.decision().weights_after == dict(
        zip(simulation.domain_names, simulation.weights.iloc[-1], strict=True)
    )
    assert len(simulation.decisions) * 6 == len(simulation.domains)
    counts = prepare(RECIPE, overrides=overrides, quiet=True)
    assert counts.index.names == ["domain", "split"]
    assert counts.xs("train", level="split")["num_rows"].tolist() == [30] * 6


def test_a_plan_without_a_transfer_file_or_for_an_unknown_purpose_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"^[^\n]*transfer\.json[^\n]*$"):
        plan(RECIPE, overrides=[f"run.output_dir={tmp_path}"], quiet=True)
    with pytest.raises(ValueError, match="purpose='best': expected mean, balanced, target"):
        plan(RECIPE, purpose="best")
