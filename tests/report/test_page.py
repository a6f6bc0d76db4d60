"""The page shows the numbers of the run's files, also if names are hostile or files are missing."""

import html
import json
import logging
import re

import pytest
from written_run import HOSTILE, write_run

from versatune_ds.report import finish
from versatune_ds.report.charts import Chart, Line
from versatune_ds.report.decision_list import COLUMNS, decision_rows
from versatune_ds.report.domain_file import domain_file
from versatune_ds.report.page import render_page
from versatune_ds.report.run_charts import RunCharts, served_shares
from versatune_ds.report.series import read_series
from versatune_ds.report.shapes import draw
from versatune_ds.report.story import headline
from versatune_ds.report.summary import DOMAIN_COLUMNS, comparison, domain_table, state_of


def page_of(*folders):
    return render_page([read_series(folder) for folder in folders], now=1.8e9)


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def shown(page):
    """Return the page's text without tags."""
    body = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", body)))


def test_the_charts_have_exactly_the_numbers_of_the_runs_files(tmp_path):
    run_dir = write_run(tmp_path / "one")
    charts = data_of(page_of(run_dir))["charts"]
    decisions = [json.loads(line) for line in (run_dir / "decisions.jsonl").read_text().splitlines()]
    assert charts["run1-weights"]["steps"] == [0, 13, 23, 33, 40]
    wanted = [decisions[0]["weights_before"]["law"], *(d["weights_after"]["law"] for d in decisions[1:4])]
    assert charts["run1-weights"]["lines"][0] == {"name": "law", "values": [*wanted, wanted[-1]], "errors": None}
    loss, reference = charts["run1-loss-1"]["lines"]
    assert (loss["values"], loss["errors"]) == ([d["losses"]["code"]["mean"] for d in decisions], [0.0625] * 5)
    assert reference["values"] == [1.0] * 5
    forgotten = charts["run1-forgetting_degree"]["lines"][2]["values"]
    assert forgotten == [d["signals"]["general"]["forgetting_degree"] for d in decisions]


def steered_by_training_losses(run_dir):
    """Turn a written run into one of `mixture.signal: train`: held-out losses only at its start and end."""
    for name in ("decisions.jsonl", "metrics.jsonl"):
        lines = [json.loads(line) for line in (run_dir / name).read_text().splitlines()]
        for line in lines:
            if line.get("update"):
                line["inputs"] = {"signal": "train"}
        kept = [line for line in lines if line.get("step") in (None, 0, 40) or "train/loss" in line]
        (run_dir / name).write_text("".join(json.dumps(line) + "\n" for line in kept))
    return run_dir


def test_training_losses_that_steered_are_drawn_as_a_separate_line_from_held_out_losses(tmp_path):
    assert "Training losses steered" not in shown(page_of(write_run(tmp_path / "other")))
    run_dir = steered_by_training_losses(write_run(tmp_path / "one"))
    page = page_of(run_dir)
    assert "Training losses steered this run" in shown(page)
    assert "law 2.0000 training 2.0000 ref 1.0000" in shown(page)
    chart = data_of(page)["charts"]["run1-loss-0"]
    assert chart["steps"] == [0, 10, 20, 30, 40]
    held_out, trained, reference = chart["lines"]
    assert (held_out["name"], held_out["values"]) == ("held-out loss", [4.0, None, None, None, 2.0])
    assert held_out["errors"] == [0.0625, None, None, None, None]
    assert (trained["name"], trained["values"]) == ("training loss that steered", [None, 3.5, 3.0, 2.5, 2.0])
    assert trained["errors"] == [None, *[0.0625] * 4]
    assert reference["values"] == [1.0] * 5


def test_a_sparse_line_connects_its_values_and_other_lines_have_gaps():
    values = [1.0, None, 0.0]
    lines = [Line(name="few", values=values, is_sparse=True), Line(name="gap", values=values)]
    chart = Chart(key="k", title="t", kind="loss", steps=[0, 50, 100], lines=lines, last_step=100, x_end=100)
    few, gap = re.findall(r'class="line" d="([^"]*)"', str(draw(chart)))
    assert (few.count("M"), few.count("L")) == (1, 1)
    assert (gap.count("M"), gap.count("L")) == (2, 0)


def test_served_shares_are_computed_from_the_tokens_between_two_log_lines():
    counts = {"law": {10: 30, 20: 40, 30: 40}, "code": {10: 10, 20: 40, 30: 40}}
    assert served_shares(counts, [10, 20, 30]) == {"law": [0.75, 0.25, None, None], "code": [0.25, 0.75, None, None]}


def test_the_headline_describes_how_the_mixture_moved_why_and_how_the_losses_changed(tmp_path):
    first, second, third = headline(read_series(write_run(tmp_path / "one")))
    assert first == (
        "Over 4 updates, the last of which takes effect only after step 40, policy versatune gave most weight to law "
        "(0.333 to 0.451) and took most from code (0.333 to 0.275): on average over the updates general had most left "
        "to learn (potential 0.722) and law least (0.620)."
    )
    assert second == (
        "The mean validation loss fell from 4.125 to 2.792 nats per token; no domain ended above its first loss."
    )
    assert third == "Safeguards acted in 1 of 4 updates: floor (1)."


def test_a_move_of_steer_before_training_is_shown_from_its_effective_step(tmp_path):
    run_dir = write_run(tmp_path / "one", policy="steer")
    charts = data_of(page_of(run_dir))["charts"]
    assert charts["run1-weights"]["steps"] == [0, 3, 13, 23, 33, 40]
    assert charts["run1-weights"]["lines"][0]["values"][:3] == [1 / 3, 0.375, 0.375 + 0.625 / 16]
    assert charts["run1-moves"]["lines"][0]["values"][1] == 0.375 - 1 / 3


def test_the_headline_counts_a_move_before_training_and_describes_what_steer_follows(tmp_path):
    first, _, third = headline(read_series(write_run(tmp_path / "one", policy="steer")))
    assert first == (
        "Over 5 updates, the last of which takes effect only after step 40, policy steer gave most weight to law "
        "(0.333 to 0.485) and took most from code (0.333 to 0.257): on average over the updates general had most left "
        "to learn (2.750 nats above its reference) and law least (2.000)."
    )
    assert third == "Safeguards acted in 1 of 5 updates: floor (1)."
    short = read_series(write_run(tmp_path / "short", policy="steer", num_steps=9))
    assert headline(short)[0] == (
        "Policy steer left the mixture as it was over 1 update, which takes effect only after step 0."
    )


@pytest.mark.parametrize("num_steps", [40, 42, 43, 49])
def test_headline_and_table_show_the_weights_of_the_last_step(tmp_path, num_steps):
    series = read_series(write_run(tmp_path / "one", num_steps=num_steps))
    law = {row[0]: row for row in domain_table(series)}["law"]
    before, after = (law[DOMAIN_COLUMNS.index(column)] for column in ("weight before", "after"))
    assert f"gave most weight to law ({float(before):.3f} to {float(after):.3f})" in headline(series)[0]


def test_the_headline_shows_the_potential_if_steer_follows_relative_losses(tmp_path):
    run_dir = write_run(tmp_path / "one", policy="steer")
    config = {"mixture": {"policy": "steer", "steer": {"potential": "relative"}}}
    (run_dir / "config.yaml").write_text(json.dumps(config))
    assert "general had most left to learn (potential 0.731)" in headline(read_series(run_dir))[0]


def test_the_headline_omits_the_target_whose_share_is_given(tmp_path):
    run_dir = write_run(tmp_path / "one", policy="steer")
    (run_dir / "config.yaml").write_text(json.dumps({"mixture": {"policy": "steer", "target": "general"}}))
    assert "code had most left to learn (2.625 nats above its reference)" in headline(read_series(run_dir))[0]


def test_a_decision_shows_the_loss_above_its_reference(tmp_path):
    run_dir = write_run(tmp_path / "one")
    charts = data_of(page_of(run_dir))["charts"]
    assert charts["run1-above"]["lines"][1]["values"] == [3.125, 2.875, 2.625, 2.375, 2.125]
    rows = decision_rows(read_series(run_dir), slots={"law": 0, "code": 1, "general": 2})
    assert dict(zip(COLUMNS, rows[4].rows[1], strict=True))["above reference"] == "2.1250"


def test_text_from_the_files_never_becomes_markup(tmp_path):
    run_dir = write_run(tmp_path / "hostile", names=HOSTILE)
    (run_dir / "reference.json").write_text(json.dumps({HOSTILE[0]: HOSTILE[1], "losses": {HOSTILE[0]: 1}}))
    page = page_of(run_dir)
    assert page.count("<script") == page.count("</script>") == 2
    assert "<img" not in page
    assert all(name in shown(page) for name in HOSTILE)
    assert [line["name"] for line in data_of(page)["charts"]["run1-weights"]["lines"]] == list(HOSTILE)


def test_two_runs_are_compared_domain_by_domain_and_the_best_loss_is_marked(tmp_path):
    first, second = (read_series(write_run(tmp_path / name, best=best)) for name, best in (("a", 0), ("b", 1)))
    rows = comparison([first, second], ("law", "code", "general"))
    law, mean = dict(rows)["law"], dict(rows)["mean of 3 domains"]
    assert [(cell.text, cell.error, cell.against_first, cell.is_best) for cell in law] == [
        ("2.0000", "± 0.0625", "", True),
        ("3.0000", "± 0.0625", "1.0000 higher", False),
    ]
    assert [(cell.text, cell.against_first, cell.is_best) for cell in mean] == [
        ("2.7917", "", False),
        ("2.7917", "the same", False),
    ]
    assert "1.0000 higher" in shown(page_of(tmp_path / "a", tmp_path / "b"))


def test_runs_of_different_length_share_the_axis_of_steps(tmp_path):
    long, short = write_run(tmp_path / "long", num_steps=80), write_run(tmp_path / "short", num_steps=40)
    charts = data_of(page_of(long, short))["charts"]
    assert (charts["run2-weights"]["last"], charts["run2-weights"]["end"]) == (40, 80)
    series = read_series(short)
    drawn = RunCharts(series=series, prefix="r", slots={"law": 0, "code": 1, "general": 2}, x_end=80).losses[0]
    assert "M0.0 " in draw(drawn)
    assert "L500.0 " in draw(drawn)
    assert "L1000.0 " not in draw(drawn)


@pytest.mark.parametrize(
    "missing", ["decisions.jsonl", "metrics.jsonl", "config.yaml", "environment.json", "prior.json"]
)
def test_a_missing_file_does_not_prevent_the_page(tmp_path, missing):
    run_dir = write_run(tmp_path / "one")
    (run_dir / missing).unlink()
    assert "law" in shown(page_of(run_dir))


def test_the_page_of_a_killed_run_shows_what_it_recorded(tmp_path):
    run_dir = write_run(tmp_path / "killed")
    for name in ("decisions.jsonl", "metrics.jsonl"):
        text = (run_dir / name).read_text()
        (run_dir / name).write_text(text[: int(len(text) * 0.55)])
    series = read_series(run_dir)
    assert 0 < series.last_step < 40
    assert state_of(series, now=0).startswith(f"Not complete: step {series.last_step} of 40; it last wrote 0 minutes")
    assert f"step {series.last_step} of 40" in shown(page_of(run_dir))


def test_the_page_of_a_run_without_measurements_states_that_nothing_is_recorded(tmp_path):
    run_dir = write_run(tmp_path / "young")
    for name in ("decisions.jsonl", "metrics.jsonl"):
        (run_dir / name).write_text("")
    text = shown(page_of(run_dir))
    assert "No decision has been recorded yet" in text
    assert "No validation loss has been recorded yet" in text
    assert data_of(page_of(run_dir))["charts"]["run1-weights"]["lines"][0]["values"] == [1 / 3, 1 / 3]


def test_a_long_run_is_drawn_with_fewer_points_that_include_its_spikes(tmp_path):
    run_dir = write_run(tmp_path / "long", num_steps=20000, every=10)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    next(line for line in lines if line["step"] == 11110 and "train/loss" in line)["train/loss"] = 99.5
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    series = read_series(run_dir)
    charts = RunCharts(series=series, prefix="run1", slots={"law": 0, "code": 1, "general": 2}, x_end=20000)
    training = next(chart for chart in charts.training if chart.title == "Training loss")
    assert len(training.steps) <= 602
    assert max(training.lines[0].known) == 99.5
    assert (training.steps[0], training.steps[-1]) == (10, 20000)
    rows = decision_rows(series, slots={})
    assert len(rows) <= 400
    assert 20 in [row.step for row in rows], "the decision with a safeguard is listed"
    text = shown(page_of(run_dir))
    assert f"{len(training.steps)} of 2000 points are drawn" in text
    assert f"{len(rows)} of 2001 decisions are listed" in text


def test_numbers_by_domain_in_a_file_become_a_table_and_other_entries_a_list():
    values = {
        "weights": {"law": 0.25, "code": 0.75},
        "intervals": {"law": [0.2, 0.3]},
        "domains": {"law": {"loss": 2.0, "choices": {"accuracy": 0.5}}},
        "base": {"model": "m", "domains": {"law": {"loss": 3.0}}},
        "labeller": {"kind": "classifier", "seed": 3},
    }
    view = domain_file(values, ("law", "code"))
    assert view.columns == [
        "domain", "weights", "intervals", "domains: loss", "domains: choices.accuracy", "base.domains: loss",
    ]  # fmt: skip
    assert view.rows[0] == ["law", "0.2500", "0.2000 to 0.3000", "2.0000", "0.5000", "3.0000"]
    assert view.rows[1] == ["code", "0.7500", "–", "–", "–", "–"]  # noqa: RUF001
    assert view.items == [("base.model", "m"), ("labeller.kind", "classifier"), ("labeller.seed", "3")]


def test_a_report_that_cannot_be_written_at_the_end_of_a_run_is_one_warning(tmp_path, caplog, capsys):
    run_dir = write_run(tmp_path / "one")
    (run_dir / "report").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        finish.show_summary(run_dir)
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().startswith(f"no report of {run_dir} was written: ")
    (run_dir / "report").unlink()
    finish.show_summary(run_dir)
    report, evaluate, export = capsys.readouterr().out.splitlines()[-3:]
    assert report == f"report         {run_dir / 'report' / 'index.html'}"
    assert evaluate == f"next           versatune evaluate {run_dir}"
    assert export == f"               versatune export {run_dir}"


def test_the_command_writes_pages_and_pictures(tmp_path, capsys):
    from versatune_ds.cli import main

    first, second = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    assert main(["report", str(first), str(second), "--png", "--svg"]) == 0
    assert f"report         {first / 'report' / 'compare.html'}" in capsys.readouterr().out
    assert {path.name for path in (second / "report").iterdir()} == {"weights.png", "weights.svg"}
    assert main(["report", str(first), "--output", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
