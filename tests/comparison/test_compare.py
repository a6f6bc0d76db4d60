"""A comparison on a tiny model: one command, resumed after a failure, the same result when it is repeated."""

import json
import multiprocessing
import re
import shutil
import time

import pytest
import yaml
from tiny_run import tiny_config

from versatune_ds.comparison import compare as compare_module
from versatune_ds.comparison import starting_point
from versatune_ds.comparison.compare import compare
from versatune_ds.comparison.plan import read_plan
from versatune_ds.comparison.starting_point import check_settings, digest_of_start, make_starting_point, processes_of


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
        "choices": [str(tmp_path / "choices")],
    }
    (tmp_path / "choices").mkdir()
    question = {"question": "2 + 2?", "choices": ["4", "5"], "answer": 0}
    (tmp_path / "choices" / "general.jsonl").write_text(json.dumps(question) + "\n")
    path.write_text(yaml.safe_dump(plan))
    return path


def test_comparisons_share_a_starting_point_if_its_settings_are_the_same(comparison):
    plan = read_plan(comparison, ["detect=true"])
    check_settings(read_plan(comparison, ["detect=true", "base.set.train.steps=7"]))
    check_settings(plan)  # nothing was made yet with the others
    (plan.start_folder / "base").mkdir()
    (plan.start_folder / "prior.json").touch()
    check_settings(plan)
    other = read_plan(comparison, ["detect=true", "name=other", "set.mixture.sigma=9"])
    assert other.start_folder == plan.start_folder != other.folder
    check_settings(other)  # the policy's keys move neither prior nor references
    with pytest.raises(ValueError, match=r"^base: its recipe is not the one .* \(train\.steps: was 4, now 9\)"):
        check_settings(read_plan(comparison, ["base.set.train.steps=9"]))
    with pytest.raises(ValueError, match=r"^set: the shared recipe .* \(train\.steps: was 4, now 9\); use the earlier"):
        check_settings(read_plan(comparison, ["name=other", "reference=true", "set.train.steps=9"]))
    check_settings(read_plan(comparison, ["set.train.steps=9"]))  # without a stage nothing depends on it
    check_settings(read_plan(comparison, ["base.set.train.steps=9", "base.name=longer"]))


def test_a_starting_point_made_when_another_attention_was_the_default_is_used_again(comparison):
    check_settings(read_plan(comparison, ["detect=true", "set.model.attention=sdpa", "base.set.model.attention=sdpa"]))
    plan = read_plan(comparison, ["detect=true"])
    (plan.start_folder / "base").mkdir()
    (plan.start_folder / "prior.json").touch()
    check_settings(plan)


def test_a_starting_point_made_before_detect_had_methods_and_an_embedding_labeller_is_used_again(comparison):
    plan = read_plan(comparison, ["detect=true"])
    check_settings(plan)
    (plan.start_folder / "base").mkdir()
    (plan.start_folder / "prior.json").touch()
    path = plan.start_folder / "settings.json"
    kept = json.loads(path.read_text())
    for settings in kept.values():
        for later in ("embedding", "method", "likelihood_rows", "interval"):
            del settings["detect"][later]
        settings["detect"] |= {"labeller": "classifier", "rounds": 10, "tol": 0.005}
    path.write_text(json.dumps(kept))
    check_settings(plan)
    with pytest.raises(ValueError, match=r"detect\.rows_per_domain: was 2000, now 30"):
        check_settings(read_plan(comparison, ["detect=true", "set.detect.rows_per_domain=30"]))


def test_the_starting_points_digest_ignores_what_another_comparison_adds(comparison):
    plan = read_plan(comparison, [])
    detecting = read_plan(comparison, ["name=other", "detect=true"])
    (plan.start_folder / "base_model").mkdir(parents=True)
    (plan.start_folder / "base_model" / "model.safetensors").write_bytes(b"weights")
    before = digest_of_start(plan)
    (plan.start_folder / "prior.json").write_text("{}")
    assert digest_of_start(plan) == before != digest_of_start(detecting)
    (plan.start_folder / "base_model" / "model.safetensors").write_bytes(b"others")
    assert digest_of_start(plan) != before


def test_a_users_mistake_found_by_a_stage_is_reported_in_the_stages_words(comparison):
    with pytest.raises(ValueError, match=r"^data\.folder: nowhere/train is not a folder"):
        make_starting_point(read_plan(comparison, ["data.folder=nowhere"]), num_processes=1)


def test_a_second_comparison_waits_for_the_starting_point_of_the_first(comparison, monkeypatch):
    """Two processes start at once; their stages, each of which logs its begin and end, do not overlap."""
    plan = read_plan(comparison, ["base.name=shared"])
    notes = plan.output_dir / "notes"

    def make(folder, command, *arguments):
        with notes.open("a") as stream:
            stream.write(f"begin {command}\n")
        time.sleep(0.3)
        if command == "export":
            (plan.start_folder / "base_model").mkdir()
            (plan.start_folder / "base_model" / "tokenizer_config.json").write_text("{}")
        with notes.open("a") as stream:
            stream.write(f"end {command}\n")

    monkeypatch.setattr(starting_point, "_run_stage", make)
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=make_starting_point, args=(plan,), kwargs={"num_processes": 1}) for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert notes.read_text().split("\n")[:-1] == ["begin train", "end train", "begin export", "end export"]


@pytest.mark.parametrize(("rows", "micro", "at_most", "processes"), [(16, 4, 6, 4), (8, 4, 2, 2), (6, 2, 2, 1)])
def test_a_stage_uses_as_many_processes_as_its_batch_divides_among(tmp_path, rows, micro, at_most, processes):
    config = tiny_config(tmp_path, f"train.rows_per_batch={rows}", f"train.rows_per_micro_batch={micro}")
    assert processes_of(config, at_most=at_most) == processes


@pytest.mark.slow
def test_a_comparison_resumes_after_a_failed_run_and_a_repeated_run_gives_the_same_page(
    comparison, tmp_path, monkeypatch, caplog
):
    folder, evaluate = tmp_path / "out" / "mine", compare_module.evaluate

    def broken(model, options):
        if model.name == "uniform-seed1":
            raise RuntimeError("no disk")
        return evaluate(model, options)

    monkeypatch.setattr(compare_module, "evaluate", broken)
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
    assert "Evaluated on test rows that no run trains on: code 2, " in text
    assert "right choices" in text
    assert re.search(r"uniform-seed1 mean loss \d\.\d{4}, worst domain [+-]\d+\.\d %", caplog.text)
    for name in ("comparison.png", "retention.png", "weights.png"):
        assert (folder / name).stat().st_size > 5_000
    html = (folder / "index.html").read_text()
    assert html.count("data:image/png;base64,") == 3
    assert 'src="comparison.png' not in html
    losses = {
        path.parent.name: json.loads(path.read_text())["domains"]["law"]["loss"]
        for path in folder.glob("runs/*/evaluation.json")
    }
    assert set(losses) == {"uniform-seed1", "versatune-seed1", "uniform-seed2", "versatune-seed2"}
    assert losses["uniform-seed1"] != losses["uniform-seed2"]
    shutil.rmtree(folder / "runs" / "versatune-seed2")
    assert compare(comparison, [], num_jobs=1).read_text() == text
    with pytest.raises(ValueError, match="uniform-seed1: made with other settings or from another base model; remove"):
        compare(comparison, ["exact=0"], num_jobs=1)
    (weights,) = (read_plan(comparison, []).start_folder / "base_model").glob("*.safetensors")
    changed = bytearray(weights.read_bytes())
    changed[-4] ^= 1  # one bit of one weight
    weights.write_bytes(changed)
    with pytest.raises(ValueError, match="uniform-seed1: made with other settings or from another base model"):
        compare(comparison, [], num_jobs=1)
