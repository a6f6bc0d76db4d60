"""What a run writes reads as one history, whatever was killed in between; W&B never stops training."""

import json

import pytest

from versatune_ds.config.load import parse_config
from versatune_ds.training.monitor import JsonLines, Monitor, Wandb, cut_json_lines, open_monitor


def config(tmp_path, mode="off"):
    return parse_config(
        {
            "run": {"name": "r", "output_dir": str(tmp_path)},
            "model": {"from_config": {"model_type": "llama"}},
            "data": {"synthetic": {}},
            "train": {"steps": 1},
            "mixture": {},
            "monitor": {"wandb": {"mode": mode}},
        }
    )


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
    open_monitor(config(tmp_path), is_rank_zero=False, resumed_step=0).metrics(1, {"a": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_wandb_that_fails_is_said_once_and_forgotten(tmp_path, caplog):
    class Broken:
        def log(self, values):
            raise ConnectionError("unreachable")

        def finish(self, exit_code):
            raise AssertionError("a sink that failed is not called again")

    sink = object.__new__(Wandb)
    sink._run = Broken()
    monitor = Monitor([sink])
    with caplog.at_level("WARNING"):
        monitor.metrics(1, {"a": 1.0})
        monitor.metrics(2, {"a": 1.0})
        monitor.finish(exit_code=0)
    assert sum("W&B stopped" in record.message for record in caplog.records) == 1


@pytest.mark.slow
def test_offline_wandb_writes_a_run_without_any_network(tmp_path):
    settings = config(tmp_path, mode="offline")
    settings.run_dir.mkdir()
    monitor = open_monitor(settings, is_rank_zero=True, resumed_step=0)
    monitor.metrics(1, {"train/loss": 2.0})
    monitor.finish(exit_code=0)
    (record,) = settings.run_dir.glob("wandb/offline-run-*/*.wandb")
    assert b"train/loss" in record.read_bytes()
