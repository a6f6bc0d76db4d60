"""There is a recipe for every policy; each trains, and they differ in nothing but the mixture."""

from pathlib import Path

import pytest
from ranks import run_ranks
from tiny_run import ROOT, be_trained, read_lines, tiny_config

from versatune_ds.config import load_config
from versatune_ds.mixture.policies import POLICIES
from versatune_ds.training.run_records import replay_run

RECIPES = sorted((ROOT / "recipes" / "policies").glob("*.yaml"))
STILL = {name for name, policy in POLICIES.items() if not policy.moves} | {"odm"}
"""Policies that move nothing in two updates; the bandit explores six domains evenly for its first ten."""


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_every_policy_has_a_recipe_of_the_same_name():
    assert {path.stem for path in RECIPES} == set(POLICIES)
    for path in RECIPES:
        config = load_config(path)
        assert config.mixture.policy == config.run.name == path.stem


def test_policy_recipes_differ_in_their_mixture_alone_so_that_their_runs_compare():
    rest = [load_config(path).model_dump(exclude={"run", "mixture"}) for path in RECIPES]
    assert all(sections == rest[0] for sections in rest)
    quickstart = load_config(ROOT / "recipes" / "quickstart.yaml")
    assert rest[0]["model"] == quickstart.model.model_dump()
    assert rest[0]["data"] == quickstart.data.model_dump()


def test_every_policy_recipe_cites_its_source():
    for path in RECIPES:
        assert path.read_text(encoding="utf-8").startswith("# ")
        assert "# Source: " in path.read_text(encoding="utf-8"), path


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_policy_trains_and_replays(tmp_path, cache_dir, path: Path):
    config = tiny_config(tmp_path, "train.steps=4", "checkpoint.every=null", cache_dir=cache_dir)
    given = load_config(path).mixture
    stages = [stage.model_copy(update={"step": i * 5}) for i, stage in enumerate(given.schedule)]
    mixture = given.model_copy(update={"update_every": 2, "sigma_interval_steps": 2, "schedule": tuple(stages)})
    config = config.model_copy(update={"mixture": mixture})
    run_ranks(lambda world: be_trained(config, world).step, world_size=1, folder=tmp_path)
    decisions = read_lines(config.run_dir / "decisions.jsonl")
    assert [decision["decided_at_step"] for decision in decisions] == [0, 2, 4]
    assert (decisions[-1]["weights_after"] == decisions[0]["weights_before"]) is (path.stem in STILL)
    assert sum(decisions[-1]["weights_after"].values()) == pytest.approx(1.0, abs=1e-12)
    assert "All 3 decisions are the recorded ones" in replay_run(config.run_dir).text
