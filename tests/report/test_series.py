"""The table and the plot say what the run's files say, and work on a run that is still going on."""

import json

import pytest

from versatune_ds.report.plots import plot_weights, weight_steps
from versatune_ds.report.series import read_series
from versatune_ds.report.table import summary_table


@pytest.fixture
def run_dir(tmp_path):
    decisions = [
        {"update": 0, "effective_step": 3, "weights_before": {"law": 0.4, "code": 0.6},
         "weights_after": {"law": 0.4, "code": 0.6}},
        {"update": 1, "effective_step": 13, "weights_before": {"law": 0.4, "code": 0.6},
         "weights_after": {"law": 0.5, "code": 0.5}},
        {"update": 2, "effective_step": 23, "weights_before": {"law": 0.5, "code": 0.5},
         "weights_after": {"law": 0.7, "code": 0.3}},
    ]  # fmt: skip
    metrics = [
        {"step": 0, "domain/law/loss": 4.0, "domain/code/loss": 3.0},
        {"step": 10, "domain/law/weight": 0.4, "domain/code/weight": 0.6, "domain/law/num_tokens": 1000},
        {"step": 20, "domain/law/loss": 2.125, "domain/code/loss": None, "domain/law/weight": 0.5,
         "domain/law/requested_share": 0.45, "domain/law/realised_share": 0.4501, "domain/law/num_tokens": 2345},
    ]  # fmt: skip
    (tmp_path / "decisions.jsonl").write_text("".join(json.dumps(d) + "\n" for d in decisions))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in metrics) + '{"step": 30, "dom')
    return tmp_path


def test_the_table_shows_first_and_last_values_of_every_domain(run_dir):
    lines = summary_table(read_series(run_dir)).splitlines()
    assert lines[3].split() == ["law", "4.000", "2.125", "0.400", "0.500", "0.4500", "0.4501", "2,345"]
    assert lines[4].split() == ["code", "3.000", "3.000", "0.600", "0.600", "-", "-", "-"]
    assert max(map(len, lines)) <= 80


def test_weights_step_where_they_take_effect_and_hold_to_the_last_step_seen(run_dir):
    assert weight_steps(read_series(run_dir))["law"] == [(0, 0.4), (13, 0.5), (20, 0.5)]


def test_the_plot_is_a_picture(run_dir):
    assert plot_weights(read_series(run_dir), run_dir / "report" / "w.png").read_bytes()[:4] == b"\x89PNG"


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no decisions\.jsonl with a decision; expected the folder of a run"):
        read_series(tmp_path)
