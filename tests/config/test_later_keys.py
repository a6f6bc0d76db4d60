"""A config that an earlier version wrote equals today's, but for keys whose value matters."""

import copy
from pathlib import Path

import pytest

from versatune_ds.config import load_config
from versatune_ds.config.later_keys import with_later_keys
from versatune_ds.config.load import flatten

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"


@pytest.fixture
def written():
    return load_config(RECIPE, ["model.lora={rank: 4}"]).model_dump(mode="json")


@pytest.mark.parametrize(
    "key", ["mixture.safeguards.overfit", "mixture.steer.follow_plan", "model.lora.use_dora", "train.seed"]
)
def test_a_key_that_an_earlier_version_did_not_have_counts_as_its_default(written, key):
    earlier = copy.deepcopy(written)
    *sections, name = key.split(".")
    place = earlier
    for section in sections:
        place = place[section]
    place.pop(name, None)
    assert with_later_keys(earlier) == with_later_keys(written)


def test_another_value_than_the_default_is_a_difference(written):
    earlier, changed = copy.deepcopy(written), copy.deepcopy(written)
    del earlier["mixture"]["safeguards"]["overfit"]
    changed["mixture"]["safeguards"]["overfit"] = "reduce"
    assert with_later_keys(earlier) != with_later_keys(changed)


def test_nothing_that_is_there_changes_and_sections_that_are_not_stay_out(written):
    flat = flatten(with_later_keys(written))
    assert {key: flat[key] for key in flatten(written)} == flatten(written)
    assert with_later_keys({"run": {"seed": 3}, "sha256": "ab"}).keys() == {"run", "sha256"}
    without_lora = {**written, "model": {**written["model"], "lora": None}}
    assert with_later_keys(without_lora)["model"]["lora"] is None
