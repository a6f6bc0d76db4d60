"""What a run writes reads as one history, whatever was killed in between."""

import errno
import json
import os

import pytest
from monitor_data import recipe

from versatune_ds.monitor import open_monitor
from versatune_ds.run_folder.json_lines import JsonLines, cut_json_lines


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


class FullDisk:
    """A file whose disk takes a few bytes more of each line, and no more."""

    def __init__(self, file):
        self._file = file

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, data):
        if len(data) < 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._file.write(data[:4])


def test_metrics_that_find_no_room_are_left_out_whole_and_that_is_said_once(tmp_path, caplog):
    sink = JsonLines(tmp_path, resumed_step=0)
    sink.metrics(1, {"a": 1.0})
    file, sink._metrics = sink._metrics, FullDisk(sink._metrics)
    with caplog.at_level("WARNING", logger="versatune_ds"):
        sink.metrics(2, {"a": 2.0})
        sink.metrics(3, {"a": 3.0})
    sink._metrics = file
    sink.metrics(4, {"a": 4.0})
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 4]
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f"{tmp_path}/metrics.jsonl: the metrics of step 2 were not written (No space left")


def test_a_decision_that_finds_no_room_ends_the_run_and_leaves_no_half_of_it(tmp_path):
    sink = JsonLines(tmp_path, resumed_step=0)
    sink.decision({"decided_at_step": 1})
    sink._decisions = FullDisk(sink._decisions)
    with pytest.raises(OSError, match="No space left"):
        sink.decision({"decided_at_step": 2})
    assert lines(tmp_path / "decisions.jsonl") == [{"decided_at_step": 1}]
