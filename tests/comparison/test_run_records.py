"""What runs cost and how they went, from their folders, by hand."""

import json

import pytest

from versatune_ds.comparison.cells import cells_of
from versatune_ds.comparison.plan import BaseModelPlan, ComparisonPlan
from versatune_ds.comparison.results_page.checkpoints import (
    checkpoints_section,
    falls_at,
    rise_since_lowest,
    shared_steps,
    three_of,
)
from versatune_ds.comparison.results_page.compute import compute_section, cost_of_runs
from versatune_ds.comparison.results_page.results import Results
from versatune_ds.comparison.results_page.run_records import RunRecord, read_record, run_records
from versatune_ds.comparison.stage_times import record_stage, seconds_by_stage


def write_metrics(folder, *, tokens=100, seconds=2.0, code=(1.0, 0.5, 0.75)):
    """Write a run of 20 steps, measured at 0, 10 and 20; the law's loss falls from 2.0 to 1.5 and 1.0."""
    lines = [{"step": 0, "domain/law/loss": 2.0, "domain/code/loss": code[0]}]
    for step, law, of_code in ((10, 1.5, code[1]), (20, 1.0, code[2])):
        served = {"domain/law/num_tokens": tokens * step, "domain/code/num_tokens": 3 * tokens * step}
        lines += [{"step": step, "perf/step_seconds": seconds * step / 10, **served}]
        lines += [{"step": step, "domain/law/loss": law, "domain/code/loss": of_code}]
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_results(tmp_path, *, targets=(), **keys):
    plan = ComparisonPlan(
        name="c", recipe="r", base=BaseModelPlan(recipe="r"), runs={"uniform": {}, "steer": {}}, seeds=(1, 2),
        baseline="uniform", output_dir=tmp_path, targets=targets, **keys,
    )  # fmt: skip
    numbers = {name: {"loss": 1.0, "num_examples": 1} for name in ("law", "code")}
    made = dict.fromkeys(cells_of(plan), numbers)
    return Results(plan=plan, base=numbers, domains=made, split="test", weights={})


def test_a_record_has_tokens_seconds_of_all_steps_and_losses_by_step(tmp_path):
    write_metrics(tmp_path / "run")
    record = read_record(tmp_path / "run")
    # 10 steps of 2 s and 10 of 4 s; 20 steps of 100 and 300 tokens.
    assert (record.num_tokens, record.seconds) == (8000, 60.0)
    assert record.losses["law"] == {0: 2.0, 10: 1.5, 20: 1.0}
    assert falls_at(record, 20) == pytest.approx({"law": 0.5, "code": 0.25})
    assert rise_since_lowest(record.losses["code"]) == 0.25
    assert rise_since_lowest(record.losses["law"]) == 0.0


def test_first_middle_and_last_step_that_all_runs_measured():
    assert three_of([15, 30, 45, 60]) == [15, 30, 60]
    assert three_of([15]) == [15]
    assert three_of([]) == []
    first, second = (
        RunRecord(num_tokens=0, seconds=0.0, losses={"law": dict.fromkeys(steps, 1.0)})
        for steps in ((0, 5, 10, 15), (0, 10, 15, 20))
    )
    assert shared_steps([first, second]) == [10, 15]
    late = RunRecord(num_tokens=0, seconds=0.0, losses={"law": {5: 1.0}})
    assert shared_steps([late]) == []  # without the base model's loss there is no change
    assert shared_steps([]) == []


def test_the_table_along_the_runs_shows_what_is_learned_and_what_turns(tmp_path):
    results = make_results(tmp_path)
    for seed in (1, 2):
        write_metrics(tmp_path / "c" / "runs" / f"uniform-seed{seed}")
    write_metrics(tmp_path / "c" / "runs" / "steer-seed1", code=(1.0, 0.5, 0.5))
    records = run_records(results)
    assert len(records) == 3  # a folder that is not there is left out
    text = checkpoints_section(results, records)
    assert text[2].splitlines() == [
        "| policy | step | law | code | turned, % |",
        "|---|---:|---:|---:|---:|",
        "| uniform | 10 | +25.0 | +50.0 |  |",
        "| uniform | 20 | +50.0 | +25.0 | code 25.0 |",
        "| steer | 10 | +25.0 | +50.0 |  |",
        "| steer | 20 | +50.0 | +50.0 | none |",
    ]
    assert checkpoints_section(results, {}) == []


def test_with_targets_the_table_has_the_target_and_the_others(tmp_path):
    results = make_results(tmp_path, targets=("law",))
    write_metrics(tmp_path / "c" / "runs" / "uniform-law-seed1")
    table = checkpoints_section(results, run_records(results))[2].splitlines()
    assert table[0] == "| policy | step | target | other domains, mean | worst other domain | turned, % |"
    assert table[-1] == "| uniform | 20 | +50.0 | +25.0 | +25.0 | code 25.0 |"


def test_the_cost_of_stages_is_set_beside_that_of_one_run(tmp_path):
    results = make_results(tmp_path, plans={"mine": {}, "more": {}})
    for label, tokens in (("uniform", 100), ("steer", 50)):
        for seed in (1, 2):
            write_metrics(tmp_path / "c" / "runs" / f"{label}-seed{seed}", tokens=tokens)
    start = results.plan.start_folder
    for domain in ("law", "code"):
        write_metrics(start / "reference" / "start" / domain, tokens=200, seconds=1.0)
    for command, seconds in (("detect", 6.0), ("reference", 90.0), ("plan", 1.0), ("plan", 2.0), ("train", 99.0)):
        record_stage(start, command, seconds=seconds)
    assert seconds_by_stage(start)["plan"] == 3.0
    table = compute_section(results, run_records(results))[4].splitlines()
    assert table[2:] == [
        "| run of uniform | 2 | 8,000 | 60.0 | 100 | 100 |",
        "| run of steer | 2 | 4,000 | 60.0 | 50 | 100 |",
        "| stage: detection | 1 | 0 | 6.0 | 0 | 10 |",
        "| stage: references | 2 | 32,000 | 90.0 | 400 | 150 |",
        "| stage: plans | 2 | 0 | 3.0 | 0 | 5 |",
        "| all stages | 5 | 32,000 | 99.0 | 400 | 165 |",
        "| all runs | 4 | 24,000 | 240.0 | 300 | 400 |",
    ]


def test_what_is_not_recorded_is_a_dash_and_makes_the_sum_one(tmp_path):
    results = make_results(tmp_path)
    write_metrics(tmp_path / "c" / "runs" / "uniform-seed1")
    text = compute_section(results, run_records(results))
    assert "| stage: detection | 1 | 0 | - | 0 | - |" in text[4]
    assert "| stage: references | 1 | - | - | - | - |" in text[4]
    assert "| all stages | 2 | - | - | - | - |" in text[4]
    assert "(not recorded for all of them)" in text[6]
    assert compute_section(results, {}) == []
    assert cost_of_runs([]) is None
