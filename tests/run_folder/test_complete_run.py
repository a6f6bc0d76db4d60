"""A run that is complete is recognised from its folder, and only if it is started again as it was."""

import json

import pytest
from command_line import write_recipe
from tiny_run import tiny_config

from versatune_ds.config import load_config
from versatune_ds.run_folder.complete_run import complete_line


def complete_run(tmp_path, *overrides, is_complete=True):
    """Write the files of a run that has done its 12 steps, and return its recipe."""
    config = tiny_config(tmp_path / "runs", *overrides)
    checkpoint = config.run_dir / "checkpoints" / "step_00000012"
    checkpoint.mkdir(parents=True)
    write_recipe(config, config.run_dir / "config.yaml")
    (checkpoint / "versatune.json").write_text(json.dumps({"is_complete": is_complete}))
    (checkpoint / "weights.pt").write_bytes(b"12345")
    (checkpoint / "MANIFEST").write_text(json.dumps({"files": {"weights.pt": [5, 0]}}))
    return write_recipe(config, tmp_path / "r.yaml")


@pytest.mark.parametrize(
    "overrides", [[], ["slurm.nodes=2"], ["monitor.log_every=7"], ["resume.allow=[data]"], ["reference.steps=3"]]
)
def test_a_complete_run_is_recognised_whatever_changes_that_training_does_not_read(tmp_path, overrides):
    config = load_config(complete_run(tmp_path), overrides)
    assert complete_line(config) == (
        f"{config.run_dir} is complete after step 12; a larger train.steps trains on, --fresh starts over"
    )


@pytest.mark.parametrize(
    "override",
    ["train.steps=13", "train.steps=11", "train.learning_rate=1.0", "mixture.sigma=0.1", "run.name=other",
     "data.row_tokens=64", "checkpoint.keep=3", "train.epochs=2"],
)  # fmt: skip
def test_with_another_setting_that_training_reads_it_is_left_to_the_start_of_the_run(tmp_path, override):
    assert complete_line(load_config(complete_run(tmp_path), [override])) is None


def test_the_reason_of_an_early_end_is_given(tmp_path):
    config = load_config(complete_run(tmp_path))
    (config.run_dir / "early_stop.json").write_text(
        json.dumps({"reason": "stopped early after step 12 of 40: no fall"})
    )
    assert "complete after step 12 (stopped early after step 12 of 40: no fall);" in complete_line(config)


def test_epochs_are_those_that_the_recorded_steps_were_computed_from(tmp_path):
    recipe = complete_run(tmp_path, "train.steps_from=2 epochs of all data")
    assert complete_line(load_config(recipe, ["train.epochs=2"])) is not None
    assert complete_line(load_config(recipe, ["train.epochs=3"])) is None


def test_the_interval_between_updates_that_a_recipe_leaves_open_is_the_recorded_one(tmp_path):
    recipe = complete_run(tmp_path, "mixture.update_every=3", "train.steps_from=2 epochs of all data")
    left_out = ("update_every:", "steps:", "steps_from:")
    lines = [line for line in recipe.read_text().splitlines() if not line.strip().startswith(left_out)]
    recipe.write_text("\n".join(lines))
    left_open = load_config(recipe, ["train.epochs=2"])
    assert left_open.mixture.update_every == 50
    assert complete_line(left_open) is not None
    assert complete_line(load_config(recipe, ["train.epochs=2", "mixture.update_every=50"])) is None


def test_a_damaged_reason_of_an_early_end_is_left_to_the_start_of_the_run(tmp_path):
    config = load_config(complete_run(tmp_path))
    (config.run_dir / "early_stop.json").write_text('{"reason')
    assert complete_line(config) is None


def test_a_run_is_not_recognised_before_its_last_step_nor_with_damaged_or_missing_files(tmp_path):
    assert complete_line(load_config(complete_run(tmp_path / "early", is_complete=False))) is None
    for name in ("weights.pt", "versatune.json", "MANIFEST"):
        config = load_config(complete_run(tmp_path / name))
        path = config.run_dir / "checkpoints" / "step_00000012" / name
        path.write_text("1234")
        assert complete_line(config) is None
        path.unlink()
        assert complete_line(config) is None
