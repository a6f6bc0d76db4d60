"""The table and the plot show the numbers of the run's files, also of a run that is still running."""

import json

import pytest

from versatune_ds.report.finish import summary_table
from versatune_ds.report.plots import plot_weights
from versatune_ds.report.series import read_series, requested_weights


@pytest.fixture
def run_dir(tmp_path):
    decisions = [
        {"update": 0, "decided_at_step": 0, "effective_step": 3, "weights_before": {"law": 0.4, "code": 0.6},
         "weights_after": {"law": 0.4, "code": 0.6}},
        {"update": 1, "decided_at_step": 10, "effective_step": 13, "weights_before": {"law": 0.4, "code": 0.6},
         "weights_after": {"law": 0.5, "code": 0.5}},
        {"update": 2, "decided_at_step": 20, "effective_step": 23, "weights_before": {"law": 0.5, "code": 0.5},
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
    assert lines[4].split() == ["code", "3.000", "-", "0.600", "0.600", "-", "-", "-"]
    assert max(map(len, lines)) <= 80


def test_the_step_of_the_last_measurement_may_be_earlier_than_the_last_recorded_step(run_dir):
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('\n{"step": 29, "train/loss": 1.5}\n')
    series = read_series(run_dir)
    assert (series.measured_step, series.last_step) == (20, 29)


def test_weights_change_at_their_effective_step_and_apply_until_the_last_recorded_step(run_dir):
    steps, weights = requested_weights(read_series(run_dir))
    assert (steps, weights["law"]) == ([0, 13, 20], [0.4, 0.5, 0.5])


def test_the_format_of_the_plot_follows_its_file_name(run_dir):
    series = read_series(run_dir)
    assert plot_weights(series, run_dir / "report" / "w.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in plot_weights(series, run_dir / "report" / "w.svg").read_text()[:1000]


def test_a_line_cut_off_by_a_kill_is_skipped_and_later_lines_are_read(run_dir):
    with (run_dir / "metrics.jsonl").open("ab") as file:
        file.write(b'\xe2\x80\n[1]\n7\n{"no": "step"}\n{"step": 40, "domain/law/loss": 1.5}\n')
    assert read_series(run_dir).of("domain/law/loss") == [(0, 4.0), (20, 2.125), (40, 1.5)]


def test_the_domains_of_a_run_without_decisions_come_from_its_metrics_or_prior(run_dir):
    (run_dir / "decisions.jsonl").write_text('{"update": 0, "weights_bef')
    series = read_series(run_dir)
    assert (series.domain_names, requested_weights(series)[1]["law"]) == (("law", "code"), [None, None])
    (run_dir / "metrics.jsonl").unlink()
    (run_dir / "environment.json").write_text("{}")
    (run_dir / "prior.json").write_text('{"weights": {"a/b": 0.25, "c": 0.75}}')
    series = read_series(run_dir)
    assert (series.domain_names, series.last_step) == (("a/b", "c"), 0)
    assert requested_weights(series) == ([0, 1], {"a/b": [0.25, 0.25], "c": [0.75, 0.75]})
    assert plot_weights(series, run_dir / "w.png").is_file()
    assert summary_table(series).splitlines()[3].split() == ["a/b", "-", "-", "0.250", "-", "-", "-", "-"]


def test_a_folder_that_is_not_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.yaml, .* or decisions\.jsonl; expected the folder of a run"):
        read_series(tmp_path)


def table_after(run_dir, *, after, error=None, stderr=None):
    """Return the table's lines of a run whose domain law began at 2.0 nats."""
    losses = {"domain/law/loss": 2.0, "domain/code/loss": 3.0}
    metrics = [{"step": 0, **losses}, {"step": 20, "domain/law/loss": after, "domain/code/loss": 2.5}]
    if stderr is not None:
        metrics = [{**line, "domain/law/loss_stderr": stderr} for line in metrics]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    if error is not None:
        lines = [json.loads(line) for line in (run_dir / "decisions.jsonl").read_text().splitlines()]
        lines[-1]["signals"] = {"law": {"change_from_start_stderr": error}}
        (run_dir / "decisions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return summary_table(read_series(run_dir)).splitlines()


def test_a_domain_whose_loss_rose_is_marked(run_dir):
    lines = table_after(run_dir, after=2.125)
    assert lines[3].split()[:3] == ["law", "2.000", "2.125*"]
    assert lines[4].split()[:3] == ["code", "3.000", "2.500"]
    assert lines[-1] == "* worse than before training: law (+0.125)"
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("noise", "is_marked"),
    [({"error": 0.05}, True), ({"error": 0.07}, False), ({"stderr": 0.04}, True), ({"stderr": 0.05}, False)],
)
def test_a_rise_is_marked_only_beyond_twice_its_standard_error(run_dir, noise, is_marked):
    assert ("*" in "".join(table_after(run_dir, after=2.125, **noise))) == is_marked


def test_domain_names_with_wide_characters_keep_the_columns_aligned(run_dir):
    text = (run_dir / "decisions.jsonl").read_text().replace('"law"', '"\u6cd5\u5f8b"')
    (run_dir / "decisions.jsonl").write_text(text, encoding="utf-8")
    lines = summary_table(read_series(run_dir)).splitlines()
    assert lines[3].startswith("\u6cd5\u5f8b    ")
    assert lines[4].startswith("code    ")
