"""A whole comparison on a tiny model: made from one command, gone on with after a failure, the same when made again."""

import json
import shutil

import pytest
import yaml
from tiny_run import tiny_config

from versatune_ds.comparison import jobs
from versatune_ds.comparison.compare import compare
from versatune_ds.comparison.plan import read_plan
from versatune_ds.comparison.starting_point import check_base


@pytest.fixture
def comparison(tmp_path):
    """Write a comparison of two policies, two seeds, on the tiny recipe."""
    shared = tiny_config(tmp_path / "unused", cache_dir=tmp_path / "cache").model_dump(mode="json")
    shared["train"]["steps"] = 4
    (tmp_path / "shared.yaml").write_text(yaml.safe_dump(shared))
    path = tmp_path / "mine.yaml"
    plan = {
        "name": "mine",
        "output_dir": str(tmp_path / "out"),
        "recipe": "shared.yaml",
        "base": {"recipe": "shared.yaml", "set": {"data.loss_on": "all"}},
        "detect": False,
        "reference": False,
        "seeds": [1, 2],
        "baseline": "uniform",
        "runs": {"uniform": {"mixture.policy": "uniform"}, "versatune": {}},
        "exact": 2,
    }
    path.write_text(yaml.safe_dump(plan))
    return path


def test_another_base_model_does_not_meet_the_runs_of_the_first(comparison):
    plan = read_plan(comparison, [])
    plan.folder.mkdir(parents=True)
    check_base(plan)
    check_base(plan)
    with pytest.raises(ValueError, match=r"^base: its recipe is not the one that the base model in .* was made with"):
        check_base(read_plan(comparison, ["base.set.train.steps=9"]))


@pytest.mark.slow
def test_a_comparison_goes_on_after_a_failed_run_and_gives_the_same_when_a_run_is_made_again(
    comparison, tmp_path, monkeypatch, caplog
):
    folder, evaluate = tmp_path / "out" / "mine", jobs.evaluate

    def broken(model, options):
        if model.name == "uniform-seed1":
            raise RuntimeError("no disk")
        return evaluate(model, options)

    monkeypatch.setattr(jobs, "evaluate", broken)
    with pytest.raises(RuntimeError, match=r"1 of 4 runs failed: see .*logs/uniform-seed1\.log"):
        compare(comparison, [], num_jobs=2)
    assert "no disk" in (folder / "logs" / "uniform-seed1.log").read_text()
    monkeypatch.undo()
    caplog.set_level("INFO")
    page = compare(comparison, [], num_jobs=2)
    assert "4 runs, 3 of them done" in caplog.text
    assert page == folder / "README.md"
    text = page.read_text()
    assert "| versatune | " in text
    assert (folder / "comparison.png").stat().st_size > 5_000
    losses = {
        path.parent.name: json.loads(path.read_text())["domains"]["law"]["loss"]
        for path in folder.glob("runs/*/evaluation.json")
    }
    assert set(losses) == {"uniform-seed1", "versatune-seed1", "uniform-seed2", "versatune-seed2"}
    assert losses["uniform-seed1"] != losses["uniform-seed2"]
    shutil.rmtree(folder / "runs" / "versatune-seed2")
    assert compare(comparison, [], num_jobs=1).read_text() == text
    with pytest.raises(ValueError, match="uniform-seed1: made with other settings; remove it"):
        compare(comparison, ["exact=0"], num_jobs=1)
