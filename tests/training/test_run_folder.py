"""A run's folder is made once and come back to; what would make it another run is refused."""

import json

import pytest
import yaml

from versatune_ds.config.load import parse_config
from versatune_ds.distributed import World
from versatune_ds.training.run_folder import flatten, open_run_folder


def config(tmp_path, **train):
    return parse_config(
        {
            "run": {"name": "r", "output_dir": str(tmp_path)},
            "model": {"from_config": {"model_type": "llama"}},
            "data": {"synthetic": {}},
            "train": {"steps": 10, **train},
            "mixture": {},
        }
    )


def open_folder(settings, *, is_fresh=False):
    open_run_folder(settings, is_fresh=is_fresh, world=World())
    return settings.run_dir


def test_the_resolved_config_and_the_environment_lie_in_the_folder(tmp_path):
    folder = open_folder(config(tmp_path))
    assert yaml.safe_load((folder / "config.yaml").read_text())["train"]["steps"] == 10
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["world_size"] == 1
    assert environment["versions"]["torch"]


def test_a_key_that_may_change_is_said(tmp_path, caplog):
    open_folder(config(tmp_path))
    with caplog.at_level("INFO", logger="versatune_ds"):
        open_folder(config(tmp_path, learning_rate=1.0))
    assert "train.learning_rate: 1.0 since now, 2e-05 before" in caplog.text


def test_a_key_that_makes_the_run_is_refused_and_fresh_starts_over(tmp_path):
    folder = open_folder(config(tmp_path))
    (folder / "metrics.jsonl").write_text("old")
    with pytest.raises(ValueError, match=r"^train\.rows_per_batch: 16, but the run in .* began with 8; give it back"):
        open_folder(config(tmp_path, rows_per_batch=16))
    open_folder(config(tmp_path, rows_per_batch=16), is_fresh=True)
    assert not (folder / "metrics.jsonl").exists()


@pytest.mark.parametrize("is_fresh", [False, True])
def test_a_folder_that_is_no_runs_is_never_touched(tmp_path, is_fresh):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="is no run's folder"):
        open_folder(config(tmp_path), is_fresh=is_fresh)
    assert (tmp_path / "r" / "thesis.tex").read_text() == "years of work"


def test_nested_keys_are_compared_by_their_dotted_names():
    assert flatten({"a": {"b": {"c": 1}, "d": {}}, "e": [2]}) == {"a.b.c": 1, "a.d": {}, "e": [2]}
