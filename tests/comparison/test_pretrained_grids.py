"""The grid for a pretrained model runs to its page, at a tiny size and without a GPU, in the order that is written."""

import re
from pathlib import Path

import pytest
from base_model import save_base_model

from versatune_ds.comparison.compare import CompareOptions, compare

RECIPES = Path(__file__).parents[2] / "recipes" / "compare"
TINY = (
    "data={synthetic: {num_rows: 24, num_valid_rows: 4, num_test_rows: 3}, row_tokens: 128}",
    "set.train.precision=fp32",
    "set.train.rows_per_batch=2",
    "set.train.rows_per_micro_batch=2",
    "set.train.steps=2",
    "set.reference.steps=2",
    "set.reference.evaluate_every=1",
    "set.mixture.update_every=1",
    "set.mixture.sigma_interval_steps=1",
    "set.validation.max_examples_per_domain=3",
    "seeds=[1]",
    "detect=false",
    "set.mixture.prior=proportional",
)


def run_grid(name, folder, *overrides):
    """Run a grid of the project from a tiny model; return its page and the runs in the order they ended."""
    base = save_base_model(folder / "model")
    words = [*TINY, f"base.model={base}", f"output_dir={folder}/out", *overrides]
    return compare(RECIPES / f"{name}.yaml", words, CompareOptions(num_jobs=1)).read_text()


@pytest.mark.slow
def test_the_grid_of_abilities_runs_with_plans_learning_rates_and_adapters_in_its_order(tmp_path, caplog):
    caplog.set_level("INFO")
    page = run_grid("pretrained", tmp_path, "static=1")
    ended = [found[1] for found in map(re.compile(r"(\w+)-seed1 mean loss").match, caplog.messages) if found]
    assert ended[:6] == ["uniform", "planned_balanced", "planned", "steer_balanced", "steer", "proportional"]
    assert set(ended[6:12]) == {
        "uniform_slow", "planned_slow", "uniform_fast", "planned_fast", "uniform_lora", "planned_lora"
    }  # fmt: skip
    for label in ended:
        assert f"| {label} | " in page
    assert "bits a byte" in page
    assert "learning rate" in page
