"""A record whose last line was cut or zeroed is read without it; damage in the middle is named with its line."""

import json
import logging

import pytest

from versatune_ds.mixture.decision import Decision
from versatune_ds.mixture.offline.recorded_losses import read_decisions
from versatune_ds.report.series import read_json_lines
from versatune_ds.run_folder.json_lines import cut_json_lines
from versatune_ds.run_folder.json_records import complete_lines


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


def test_a_broken_last_line_is_left_out_and_logged(tmp_path, caplog, broken_end):
    path = tmp_path / "decisions.jsonl"
    path.write_bytes(f"{decision_line(0)}\n{decision_line(4)}\n".encode() + broken_end)
    assert [decision.decided_at_step for decision in read_decisions(path)] == [0, 4]
    assert f"{path}:3: the last line is left out: " in caplog.text
    assert len(caplog.records) == 1


def test_damage_in_the_middle_is_named_with_its_line(tmp_path):
    path = tmp_path / "decisions.jsonl"
    path.write_bytes(f"{decision_line(0)}\n".encode() + b"\0" * 64 + f"\n{decision_line(4)}\n".encode())
    with pytest.raises(RuntimeError, match=r"decisions\.jsonl:2: zeros, as a power cut leaves; copy the file back"):
        read_decisions(path)


def test_a_changed_last_line_is_refused_not_left_out(tmp_path):
    path = tmp_path / "decisions.jsonl"
    path.write_text(f"{decision_line(0)}\n{decision_line(4).replace('0.5', '0.4', 1)}\n")
    with pytest.raises(RuntimeError, match=r"decisions\.jsonl:2: .*does not match"):
        read_decisions(path)


def test_a_resumed_run_drops_a_broken_end_and_keeps_and_names_damage_in_the_middle(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\0\0\0\n{"step": 2}\n{"step": 3}\n{"st\0\0')
    cut_json_lines(path, key="step", last_step=2)
    assert path.read_bytes() == b'{"step": 1}\n\0\0\0\n{"step": 2}\n'
    assert f"{path}:2: zeros, as a power cut leaves; it stays" in caplog.text
    assert f"{path}:5: the last line is left out: cut off, followed by zeros" in caplog.text
    caplog.clear()
    cut_json_lines(path, key="step", last_step=-1)
    assert (path.read_bytes(), caplog.text) == (b"", "")


def test_a_report_leaves_out_what_is_broken_and_says_so_but_not_of_a_line_being_written(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step\n{"step": 2}\n{"st')
    with caplog.at_level(logging.WARNING):
        assert [line["step"] for line in read_json_lines(path)] == [1, 2]
    assert [record.getMessage() for record in caplog.records] == [f"{path}:2 is left out: no complete JSON object"]


def test_a_missing_file_has_no_lines(tmp_path):
    assert list(complete_lines(tmp_path / "none.jsonl", when_damaged=pytest.fail)) == []
