"""The files of a run read as one history after kills and resumes; a corrupt line is reported with its number."""

import errno
import json
import logging
import os

import pytest

from versatune_ds.mixture.decision import Decision
from versatune_ds.mixture.offline.recorded_losses import read_decisions
from versatune_ds.report.series import read_json_lines
from versatune_ds.run_folder.disk_errors import DiskError
from versatune_ds.run_folder.json_lines import JsonLines, append_to_file, complete_lines, cut_json_lines


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_are_one_object_a_line_and_nan_becomes_null(tmp_path):
    sink = JsonLines(tmp_path, resumed_step=0)
    sink.metrics(5, {"train/loss": 2.5, "domain/law/loss": float("nan")})
    assert lines(tmp_path / "metrics.jsonl") == [{"step": 5, "train/loss": 2.5, "domain/law/loss": None}]


def test_lines_beyond_the_resumed_step_and_an_incomplete_last_line_are_dropped(tmp_path):
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


def test_metrics_are_skipped_on_a_full_disk_and_that_is_logged_once(tmp_path, caplog):
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


def test_a_decision_on_a_full_disk_ends_the_run_and_leaves_no_partial_line(tmp_path):
    sink = JsonLines(tmp_path, resumed_step=0)
    sink.decision({"decided_at_step": 1})
    sink._decisions = FullDisk(sink._decisions)
    with pytest.raises(DiskError, match=r"decisions.jsonl: a decision could not be written \(No space left"):
        sink.decision({"decided_at_step": 2})
    assert lines(tmp_path / "decisions.jsonl") == [{"decided_at_step": 1}]


def test_a_decision_that_cannot_be_written_for_another_reason_asks_for_no_disk_space(tmp_path):
    sink = JsonLines(tmp_path, resumed_step=0)
    sink._decisions = (tmp_path / "decisions.jsonl").open("rb", buffering=0)
    with pytest.raises(DiskError, match=r"a decision could not be written \(.*\), .* Start again to resume") as caught:
        sink.decision({"decided_at_step": 2})
    assert "disk space" not in str(caught.value)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_line_that_finds_the_disk_full_has_the_name_of_the_file(tmp_path):
    path = tmp_path / "resumes.jsonl"
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*resumes\.jsonl'"):
        append_to_file(path, {"step": 5})


def decision_line(step):
    weights = {"law": 0.5, "code": 0.5}
    decision = Decision(
        update=step, decided_at_step=step, effective_step=step + 3, losses={}, signals={}, weights_before=weights,
        weights_after=weights, acted=(), reason="-",
    )  # fmt: skip
    return json.dumps({**decision.to_dict(), "digest": decision.computed_digest()})


@pytest.fixture(params=["zeroed", "only zeros", "cut", "cut with an end", "not text"])
def broken_end(request):
    line = decision_line(9).encode()
    return {
        "zeroed": line[:-40] + b"\0" * 4096,
        "only zeros": b"\0" * 4096,
        "cut": line[:-1],
        "cut with an end": line[:-40] + b"\n",
        "not text": line[:30] + b"\xff\xfe\x85\n",
    }[request.param]


def test_an_incomplete_last_line_is_skipped_and_logged(tmp_path, caplog, broken_end):
    path = tmp_path / "decisions.jsonl"
    path.write_bytes(f"{decision_line(0)}\n{decision_line(4)}\n".encode() + broken_end)
    assert [decision.decided_at_step for decision in read_decisions(path)] == [0, 4]
    assert f"{path}:3: the last line is skipped: " in caplog.text
    assert len(caplog.records) == 1


def test_a_corrupt_line_in_the_middle_is_reported_with_its_number(tmp_path):
    path = tmp_path / "decisions.jsonl"
    path.write_bytes(f"{decision_line(0)}\n".encode() + b"\0" * 64 + f"\n{decision_line(4)}\n".encode())
    with pytest.raises(RuntimeError, match=r"decisions\.jsonl:2: zeros, as a power cut leaves; copy the file back"):
        read_decisions(path)


def test_a_changed_last_line_is_refused_and_not_skipped(tmp_path):
    path = tmp_path / "decisions.jsonl"
    path.write_text(f"{decision_line(0)}\n{decision_line(4).replace('0.5', '0.4', 1)}\n")
    with pytest.raises(RuntimeError, match=r"decisions\.jsonl:2: .*does not match"):
        read_decisions(path)


def test_a_resumed_run_drops_an_incomplete_end_and_keeps_and_logs_a_corrupt_line_before_it(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\0\0\0\n{"step": 2}\n{"step": 3}\n{"st\0\0')
    cut_json_lines(path, key="step", last_step=2)
    assert path.read_bytes() == b'{"step": 1}\n\0\0\0\n{"step": 2}\n'
    assert f"{path}:2: zeros, as a power cut leaves; it stays" in caplog.text
    assert f"{path}:5: the last line is skipped: cut off, followed by zeros" in caplog.text
    caplog.clear()
    cut_json_lines(path, key="step", last_step=-1)
    assert (path.read_bytes(), caplog.text) == (b"", "")


def test_a_report_skips_and_logs_corrupt_lines_but_not_a_line_being_written(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step\n{"step": 2}\n{"st')
    with caplog.at_level(logging.WARNING):
        assert [line["step"] for line in read_json_lines(path)] == [1, 2]
    assert [record.getMessage() for record in caplog.records] == [f"{path}:2 is skipped: no complete JSON object"]


def test_a_missing_file_has_no_lines(tmp_path):
    assert list(complete_lines(tmp_path / "none.jsonl", when_damaged=pytest.fail)) == []
