"""Reference losses, detection, checks, comparisons and exports from Python: what is passed on, and what comes back."""

import json
import math
from pathlib import Path

import pytest

from tests.helpers.tiny_run import ROOT, tiny_config
from versatune_ds import check, compare, detect, evaluate, export, reference
from versatune_ds.comparison.comparison_file import read_plan

REFERENCE = {
    "losses": {"law": 1.5, "code": 2.0, "rest": None},
    "stderrs": {"law": 0.1, "code": 0.2},
    "base_losses": {"law": 3.0, "code": 3.5},
    "train_losses": {"law": 1.25},
    "gaps": {"law": 0.25},
    "steps": {"law": 8, "code": 4},
    "num_loss_tokens": {"law": 100, "code": 50},
}


def test_several_processes_measure_references_as_the_command_line_does_and_the_file_comes_back_as_a_frame(
    tmp_path, monkeypatch
):
    started = []

    def run_ranks_instead(launcher, layout, *, script, words):
        started.append((layout.processes, script, words[1:]))
        (tmp_path / "r.json").write_text(json.dumps(REFERENCE), encoding="utf-8")
        return 0

    monkeypatch.setattr("versatune_ds.launch.start.run_ranks", run_ranks_instead)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    found = reference(
        tiny_config(tmp_path), domains=["law", "code"], output=tmp_path / "r.json", processes=2, quiet=True
    )
    words = ["--domains=law,code", f"--output={tmp_path / 'r.json'}", "--quiet"]
    assert started == [(2, "reference.py", words)]
    assert (found.path, found.transfer_path) == (tmp_path / "r.json", None)
    frame = found.domains
    assert frame.index.tolist() == ["law", "code", "rest"]
    assert frame.loc["law"].tolist() == [1.5, 0.1, 3.0, 1.25, 0.25, 8, 100]
    assert math.isnan(frame.loc["rest", "loss"])
    assert math.isnan(frame.loc["code", "train_loss"])


def test_references_that_are_still_to_be_measured_are_an_error_and_so_is_a_file_of_another_kind(tmp_path, monkeypatch):
    monkeypatch.setattr("versatune_ds.launch.start.run_ranks", lambda *args, **keys: 0)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    config = tiny_config(tmp_path)
    with pytest.raises(ValueError, match=r"tiny-reference\.json: not written, since other domains are still to be"):
        reference(config, domains=["law"], processes=2, quiet=True)
    (tmp_path / "notes.json").write_text("{}")
    with pytest.raises(ValueError, match=r"notes\.json"):
        reference(config, output=tmp_path / "notes.json")


def test_what_was_detected_comes_back_with_its_intervals(tmp_path, monkeypatch):
    asked = {}

    def detect_instead(recipe, overrides, **keys):
        asked.update(keys, name=recipe.run.name)
        prior = {"weights": {"law": 0.75, "code": 0.25}, "intervals": {"law": [0.7, 0.8], "code": [0.2, 0.3]}}
        keys["output"].write_text(json.dumps(prior | {"weight_unit": "tokens"}), encoding="utf-8")
        return "table"

    monkeypatch.setattr("versatune_ds.knowledge.detect_recipe.detect_recipe", detect_instead)
    found = detect(tiny_config(tmp_path), overrides=["run.name=other"], processes=3, quiet=True)
    output = tmp_path / "other-prior.json"
    assert asked == {"processes": 3, "output": output, "labelled": None, "is_sharded": False, "name": "other"}
    assert found.weights == {"law": 0.75, "code": 0.25}
    assert found.domains.loc["code"].tolist() == [0.25, 0.2, 0.3]
    assert (found.text, found.path) == ("table", tmp_path / "other-prior.json")


def test_a_check_returns_its_findings_and_a_recipe_that_would_not_run_is_no_exception(tmp_path, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    bad = ["train.rows_per_batch=7"]
    found = check(tiny_config(tmp_path), overrides=bad, gpus_per_node=2, quiet=True)
    failed = found.findings[found.findings["level"] == "FAIL"]
    assert not found.is_ok
    assert "train.rows_per_batch" in failed["key"].tolist()
    assert all(failed["todo"] != "")
    assert "FAIL" in found.text
    assert "law" in found.examples
    with pytest.raises(ValueError, match=r"--nodes=0: expected a positive number"):
        check(tiny_config(tmp_path), nodes=0)


def test_a_check_of_a_signal_of_ones_own_finds_that_the_references_are_held_out_losses(tmp_path, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    (tmp_path / "reference.json").write_text(json.dumps({"losses": {}}), encoding="utf-8")
    config = tiny_config(tmp_path, f"mixture.reference={tmp_path / 'reference.json'}")

    def signal_findings(**given):
        findings = check(config, quiet=True, **given).findings
        return findings[findings["check"] == "signal"]

    assert signal_findings().empty
    [found] = signal_findings(signal=lambda context: {})["found"]
    assert "has held-out losses, and mixture.signal=" in found
    with pytest.raises(ValueError, match="signal: expected a function of one SignalContext"):
        check(config, signal="accuracy")


def test_sharded_evaluation_can_be_asked_for_from_python(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "versatune_ds.evaluation.command.evaluate", lambda folder, options: asked.append((folder, options)) or {}
    )
    assert evaluate(tmp_path, processes=4, sharded=True, quiet=True) == {}
    assert evaluate(tmp_path, quiet=True) == {}
    assert [(folder, options.processes, options.is_sharded) for folder, options in asked] == [
        (tmp_path, 4, True),
        (tmp_path, 1, False),
    ]


def test_a_comparison_returns_a_row_for_each_run_that_is_done(tmp_path, monkeypatch):
    overrides = [f"output_dir={tmp_path}", "seeds=[1,2]"]
    path = ROOT / "recipes" / "compare" / "multi_ability.yaml"
    plan = read_plan(path, overrides)
    base, after = ({"domains": {"law": {"loss": x}, "code": {"loss": y}}} for x, y in ((2.0, 1.0), (1.5, 1.1)))

    def compare_instead(file, keys, options):
        run_dir = plan.folder / "runs" / f"{plan.baseline}-seed2"
        run_dir.mkdir(parents=True)
        (plan.folder / "base_evaluation.json").write_text(json.dumps(base))
        (run_dir / "evaluation.json").write_text(json.dumps(after))
        return plan.folder / "index.html"

    monkeypatch.setattr("versatune_ds.comparison.compare.compare", compare_instead)
    found = compare(path, overrides=overrides, quiet=True)
    assert (found.folder, found.page) == (plan.folder, plan.folder / "index.html")
    (row,) = found.runs.to_dict("records")
    assert (row["run"], row["seed"], row["loss"], row["worst"]) == (
        plan.baseline, 2, pytest.approx(1.3), pytest.approx(-0.1),
    )  # fmt: skip
    assert found.domains["base_loss"].tolist() == [2.0, 1.0]


def test_an_export_of_no_run_or_in_an_unknown_precision_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="no complete checkpoint to export"):
        export(tmp_path, quiet=True)
    with pytest.raises(ValueError, match="precision='int8': expected fp32, bf16 or fp16"):
        export(tmp_path, precision="int8")


def test_a_function_that_shares_its_name_with_a_room_stays_a_function():
    import versatune_ds.export.folder
    import versatune_ds.reference.command

    assert (versatune_ds.reference, versatune_ds.export) == (reference, export)
    assert Path(versatune_ds.__file__).name == "__init__.py"
