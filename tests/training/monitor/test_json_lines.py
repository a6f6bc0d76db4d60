"""What a run writes reads as one history, whatever was killed in between."""

import json

from monitor_data import recipe

from versatune_ds.training.monitor import open_monitor
from versatune_ds.training.monitor.json_lines import JsonLines, cut_json_lines


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_are_one_object_a_line_and_nan_becomes_null(tmp_path):
    sink = JsonLines(tmp_path, resumed_step=0)
    sink.metrics(5, {"train/loss": 2.5, "domain/law/loss": float("nan")})
    assert lines(tmp_path / "metrics.jsonl") == [{"step": 5, "train/loss": 2.5, "domain/law/loss": None}]


def test_lines_beyond_the_resumed_step_and_a_broken_last_line_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10, "a": 1}\n{"step": 20, "a": 2}\n{"step": 30, "a": 3}\n{"step": 40, "a"')
    cut_json_lines(path, key="step", last_step=20)
    assert [line["step"] for line in lines(path)] == [10, 20]


def test_a_resumed_run_appends_to_what_was_kept(tmp_path):
    first = JsonLines(tmp_path, resumed_step=0)
    for step in (1, 2, 3):
        first.metrics(step, {"a": step})
        first.decision({"decided_at_step": step})
    second = JsonLines(tmp_path, resumed_step=2)
    second.metrics(3, {"a": 33})
    assert [line["a"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2, 33]
    assert [line["decided_at_step"] for line in lines(tmp_path / "decisions.jsonl")] == [1, 2]


def test_only_rank_zero_writes(tmp_path):
    open_monitor(recipe(tmp_path), is_rank_zero=False, resumed_step=0).metrics(1, {"a": 1.0})
    assert list(tmp_path.iterdir()) == []
