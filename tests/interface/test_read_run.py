"""A run's folder as frames: exact small numbers, incomplete folders, earlier versions."""

import json
import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.written_run import write_run
from versatune_ds import read_run
from versatune_ds.interface.frames import metrics_frame
from versatune_ds.mixture.decision import Decision

THIRD = 1 / 3


@pytest.fixture
def run_dir(tmp_path):
    """A run of 40 steps with an update every 10; law gains 1/16 of the others' weight each time and learns most."""
    return write_run(tmp_path / "written")


def test_losses_and_weights_have_a_row_a_change_and_a_column_a_domain(run_dir):
    run = read_run(run_dir)
    assert (run.name, run.step, run.domain_names) == ("written", 40, ("law", "code", "general"))
    assert run.losses.index.tolist() == [0, 10, 20, 30, 40]
    assert run.losses.index.name == "step"
    assert run.losses["law"].tolist() == [4.0, 3.5, 3.0, 2.5, 2.0]
    assert run.losses["general"].tolist() == [4.25, 4.0, 3.75, 3.5, 3.25]
    # Decided after 10, 20 and 30, in effect three steps later; that of step 40 never took effect.
    assert run.weights.index.tolist() == [0, 13, 23, 33, 40]
    assert run.weights.iloc[:2]["law"].tolist() == pytest.approx([THIRD, THIRD + (1 - THIRD) / 16])
    assert run.weights.iloc[-1].tolist() == run.weights.iloc[-2].tolist()


def test_decisions_have_a_row_each_and_domains_a_row_a_decision_and_domain(run_dir):
    run = read_run(run_dir)
    assert run.decisions["decided_at_step"].tolist() == [0, 10, 20, 30, 40]
    assert run.decisions["num_acted"].tolist() == [0, 0, 1, 0, 0]
    assert set(run.decisions["signal"]) == {"validation"}
    law = run.domains[run.domains["domain"] == "law"].set_index("decided_at_step")
    assert len(run.domains) == 15
    assert law["loss"].tolist() == [4.0, 3.5, 3.0, 2.5, 2.0]
    assert law.loc[10, "learnable_potential"] == pytest.approx(2.5 / 3.5)
    assert law.loc[10, "weight_after"] - law.loc[10, "weight_before"] == pytest.approx((1 - THIRD) / 16)
    assert law["num_loss_tokens"].dtype == "float64"


def test_metrics_of_one_step_are_one_row_and_what_was_not_recorded_is_nan(run_dir):
    metrics = read_run(run_dir).metrics
    assert metrics.index.tolist() == [0, 10, 20, 30, 40]
    assert math.isnan(metrics.loc[0, "train/loss"])
    assert metrics.loc[10, "train/loss"] == 4 - 10 / 64
    assert metrics.loc[10, "domain/law/loss"] == 3.5


@given(
    st.lists(st.dictionaries(st.sampled_from(["a", "b"]), st.floats(-9, 9)).map(lambda values: {**values, "step": 3}))
)
def test_the_last_value_of_a_metric_in_a_step_counts_whatever_was_recorded_between(lines):
    frame = metrics_frame(lines)
    assert len(frame) == bool(lines)
    for name in ("a", "b"):
        values = [line[name] for line in lines if name in line]
        assert (frame[name].tolist() if values else []) == values[-1:]


def test_a_run_in_progress_is_read_up_to_its_last_complete_line(run_dir):
    with (run_dir / "decisions.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"update": 5, "decided_at')
    assert len(read_run(run_dir).decisions) == 5


def test_a_run_that_has_only_begun_has_empty_frames_with_the_same_columns(run_dir):
    full = read_run(run_dir)
    for name in ("metrics.jsonl", "decisions.jsonl"):
        (run_dir / name).unlink()
    run = read_run(run_dir)
    assert (run.step, len(run.metrics), len(run.losses), len(run.decisions), len(run.domains)) == (0, 0, 0, 0, 0)
    assert list(run.decisions.columns) == list(full.decisions.columns)
    assert list(run.domains.columns) == list(full.domains.columns)[:9]
    assert run.domain_names == ("law", "code", "general")
    assert run.weights.loc[0].tolist() == pytest.approx([THIRD] * 3)
    assert dict(run.evaluation) == {}
    with pytest.raises(ValueError, match=r"decisions\.jsonl: no such file"):
        run.decision()


def test_decisions_of_an_earlier_version_without_inputs_or_with_other_signals_are_read(run_dir):
    path = run_dir / "decisions.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for line in lines:
        line.pop("inputs", None)
        line["signals"] = {name: {"potential_of_old": 0.5} for name in line["signals"]}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    run = read_run(run_dir)
    assert run.domains["potential_of_old"].tolist() == [0.5] * 15
    assert set(run.decisions["signal"]) == {"validation"}


def test_one_decision_is_returned_verified_and_a_changed_line_is_refused(run_dir):
    path = run_dir / "decisions.jsonl"
    decisions = []
    for line in path.read_text(encoding="utf-8").splitlines():
        values = {**json.loads(line), "digest": ""}
        decisions.append(Decision.from_dict({**values, "digest": Decision.from_dict(values).computed_digest()}))
    path.write_text("".join(decision.to_json() + "\n" for decision in decisions), encoding="utf-8")
    run = read_run(run_dir)
    assert run.decision() == decisions[-1]
    assert run.decision(step=25) == decisions[2]
    assert "law" in run.explain(step=25)
    path.write_text(path.read_text(encoding="utf-8").replace('"update": 2', '"update": 7'), encoding="utf-8")
    with pytest.raises(ValueError, match=r"decisions\.jsonl:3: .*digest"):
        read_run(run_dir).decision()


def test_the_report_is_written_where_the_command_line_writes_it(run_dir, capsys):
    assert read_run(run_dir).report() == run_dir / "report" / "index.html"
    assert read_run(str(run_dir)).report(run_dir / "page.html").is_file()
    assert capsys.readouterr().out == ""


def test_a_folder_that_is_no_runs_is_refused_with_the_line_of_the_command_line(tmp_path):
    with pytest.raises(ValueError, match=r"expected the folder of a run \(runs/NAME\)"):
        read_run(tmp_path)


def test_frames_can_be_compared_because_each_read_makes_its_own(run_dir):
    pd.testing.assert_frame_equal(read_run(run_dir).weights, read_run(run_dir).weights)
