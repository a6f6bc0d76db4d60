"""The grids of a pretrained model begin with the runs that matter most, and share what they start from."""

import re

import pytest
from base_model import save_base_model
from tiny_run import ROOT

from versatune_ds.comparison.cells import cells_of
from versatune_ds.comparison.compare import CompareOptions, compare
from versatune_ds.comparison.comparison_file import read_plan
from versatune_ds.comparison.order import in_order
from versatune_ds.comparison.start_settings import check_settings

GRIDS = ROOT / "recipes" / "compare"


def grid(name, *overrides):
    return read_plan(GRIDS / f"{name}.yaml", list(overrides))


def first_runs(name, num):
    """Return the first runs of a grid, as they are started."""
    plan = grid(name)
    return [f"{cell.label}-{cell.seed}" for cell in in_order(list(cells_of(plan)), plan.order)[:num]]


def test_the_first_runs_are_the_baseline_and_the_plans_in_complete_pairs():
    key = ["uniform", "planned_balanced", "planned", "steer_balanced", "steer", "proportional"]
    assert first_runs("pretrained", 18) == [f"{label}-{seed}" for seed in (1, 2, 3) for label in key]
    assert first_runs("pretrained_limited", 4) == ["uniform-1", "planned-1", "proportional-1", "uniform-2"]
    assert first_runs("pretrained_expansion", 3) == ["target_uniform-1", "planned_bound-1", "steer-1"]


def test_learning_rates_are_a_third_and_three_times_that_of_the_recipe():
    runs = grid("pretrained").runs
    rates = {
        label: runs[label].get("train.learning_rate", 5e-5) for label in ("planned_slow", "planned", "planned_fast")
    }
    assert rates == {"planned_slow": 1.5e-5, "planned": 5e-5, "planned_fast": 1.5e-4}


def test_the_grids_of_the_same_length_share_their_starting_point(tmp_path):
    base = f"base.model={save_base_model(tmp_path)}"
    for name in ("pretrained", "pretrained_expansion"):
        check_settings(grid(name, base, f"output_dir={tmp_path / 'out'}"))
    assert [folder.name for folder in (tmp_path / "out").iterdir()] == ["base-pretrained_start"]


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
    return compare(GRIDS / f"{name}.yaml", words, CompareOptions(num_jobs=1)).read_text()


@pytest.mark.slow
def test_the_grid_of_abilities_runs_with_plans_learning_rates_and_adapters_in_its_order(tmp_path, caplog):
    caplog.set_level("INFO")
    page = run_grid("pretrained", tmp_path, "static=1")
    ended = [found[1] for found in map(re.compile(r"(\w+)-seed1 mean loss").match, caplog.messages) if found]
    assert ended[:6] == ["uniform", "planned_balanced", "planned", "steer_balanced", "steer", "proportional"]
    assert set(ended[6:12]) == {
        "uniform_slow", "planned_slow", "uniform_fast", "planned_fast", "uniform_lora", "planned_lora"
    }  # fmt: skip
    assert len(ended) == 21
    for label in ended[:-1]:  # the last one is a drawn mixture, which the table of policies leaves out
        assert f"| {label} | " in page
    assert "bits a byte" in page
    assert "learning rate" in page
