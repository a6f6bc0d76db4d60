"""The report of a run that started from a plan: what was predicted beside what was measured."""

import html
import json
import re

import pytest
from plans import plan_content
from written_run import write_run

from versatune_ds.report.finish import write_report
from versatune_ds.report.page import render_page
from versatune_ds.report.planned import plan_of, plan_rows, plan_sentences, track_table
from versatune_ds.report.series import read_series

NUMBERS = {"law": (1.875, 4.0), "code": (3.0625, 4.125), "general": (3.75, 4.25)}
"""Predicted loss, and the loss that write_run's domains begin with. They end at 2, 3.125 and 3.25."""


PAIRED = "Errors of measured losses are those of their change since the start, paired by held-out example."


def shown(folder):
    """Return the text of a run's page without tags."""
    page = re.sub(r"<(script|style).*?</\1>", "", render_page([read_series(folder)], now=1.8e9), flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", page)))


def planned_run(folder, **entries):
    run_dir = write_run(folder)
    predicted = {
        name: {"loss": loss, "stderr": 0.0625, "base": base, "change": loss - base}
        for name, (loss, base) in NUMBERS.items()
    }
    (run_dir / "plan.json").write_text(json.dumps(plan_content(**{"predicted": predicted} | entries)))
    return run_dir


def test_the_table_has_predicted_and_measured_losses_of_each_domain_and_of_the_mean(tmp_path):
    series = read_series(planned_run(tmp_path / "one"))
    law, _, general, mean = plan_rows(series, plan_of(series))
    assert law[:2] == ["law", "0.5000"]
    assert law[3:] == ["4.0000", "1.8750", "0.0625", "2.0000", "0.0884", "+0.1250", "-53.1%", "-50.0%"]
    assert general[8:] == ["-0.5000", "-11.8%", "-23.5%"]
    # (1.875 + 3.0625 + 3.75) / 3 and (2 + 3.125 + 3.25) / 3
    assert mean == ["mean of 3", "", "", "", "2.8958", "", "2.7917", "", "-0.1042", "", ""]


def test_the_sentences_say_how_many_domains_were_predicted_well_and_which_were_not(tmp_path):
    series = read_series(planned_run(tmp_path / "one"))
    # No paired error is recorded, so that of the difference is .0625 * sqrt(3) = .108: general is off by .5.
    assert plan_sentences(series, plan_of(series)) == [
        "Planned by transfer for balanced: a run of 40 steps.",
        "2 of 3 domains ended within two standard errors of their predicted loss; not so: general. " + PAIRED,
        "Every domain ended within the bound that was planned for.",
    ]
    series = read_series(planned_run(tmp_path / "two", bounds={"law": -0.5625}, budget_steps=80))
    first, _, last = plan_sentences(series, plan_of(series))
    assert first.endswith("This run has 40 so far, so the losses are not those of the same step.")
    assert last == "Above the bound that was planned for: law (-50.0%, bound -56.2%)."


def test_verdicts_use_the_paired_errors_of_changes_where_they_are_recorded(tmp_path):
    run_dir = planned_run(tmp_path / "one", bounds={"law": -0.5625, "code": -0.25})
    path = run_dir / "decisions.jsonl"
    decisions = [json.loads(line) for line in path.read_text().splitlines()]
    for name, error in (("law", 0.25), ("code", 0.03125), ("general", 0.0)):
        decisions[-1]["signals"][name]["change_from_start_stderr"] = error
    path.write_text("".join(json.dumps(line) + "\n" for line in decisions))
    series = read_series(run_dir)
    law, code, *_ = plan_rows(series, plan_of(series))
    assert (law[7], code[7]) == ("0.2500", "0.0312")
    # Law fell by half of 4, its bound is .25 nats lower, and .25 is its error; code fell by 1 of 4.125, .03125 too few.
    assert plan_sentences(series, plan_of(series))[-1] == (
        "Above the bound that was planned for: law (-50.0%, bound -56.2%, within two standard errors of it), code "
        "(-24.2%, bound -25.0%, within two standard errors of it)."
    )


def test_page_and_terminal_show_the_plan_of_a_run_that_has_one(tmp_path, capsys):
    run_dir = planned_run(tmp_path / "one")
    text = shown(run_dir)
    assert "The plan, and what came of it Planned by transfer for balanced: a run of 40 steps." in text
    assert "law 0.5000 – 4.0000 1.8750 0.0625 2.0000" in text  # noqa: RUF001
    write_report([run_dir])
    assert "2 of 3 domains ended within two standard errors" in capsys.readouterr().out
    other = write_run(tmp_path / "other")
    assert "The plan, and what came of it" not in shown(other)
    write_report([other])
    assert "predicted" not in capsys.readouterr().out


def test_the_track_stands_beside_the_losses_measured_on_the_way(tmp_path, capsys):
    # Law is measured at 4, 3.5, 3, 2.5, 2 after steps 0, 10, ..., 40; halfway the plan expects 3.125.
    points = [
        {"fraction": fraction, "losses": dict.fromkeys(NUMBERS, loss), "stderrs": dict.fromkeys(NUMBERS, 0.0625)}
        for fraction, loss in ((0, 4.0), (0.375, 3.5), (0.5, 3.125), (1, 1.875))
    ]
    run_dir = planned_run(tmp_path / "one", track=points)
    series = read_series(run_dir)
    columns, (law, *_) = track_table(series, plan_of(series))
    assert columns[:3] == ("domain", "step 15 predicted", "step 15 measured")
    assert law == ["law", "3.5000", "3.2500", "3.1250", "3.0000", "1.8750", "2.0000"]
    assert "law 3.5000 3.2500 3.1250 3.0000" in shown(run_dir)
    write_report([run_dir])
    assert re.search(r"law +3.5000 +3.2500 +3.1250", capsys.readouterr().out)
    series = read_series(planned_run(tmp_path / "two"))
    assert track_table(series, plan_of(series)) is None


def test_a_run_that_has_measured_nothing_since_its_start_shows_what_is_predicted(tmp_path):
    run_dir = planned_run(tmp_path / "young")
    for name in ("decisions.jsonl", "metrics.jsonl"):
        (run_dir / name).write_text((run_dir / name).read_text().splitlines()[0] + "\n")
    series = read_series(run_dir)
    rows = plan_rows(series, plan_of(series))
    assert len(rows) == 3
    assert rows[0][4:7] == ["1.8750", "0.0625", "–"]  # noqa: RUF001
    assert plan_sentences(series, plan_of(series))[-1] == "No loss has been measured since training began."


@pytest.mark.parametrize("text", ["{", "[]", '{"weights": {"law": 1}, "predicted": 3, "planner": "x"}'])
def test_a_plan_that_cannot_be_read_does_not_prevent_the_page(tmp_path, text):
    run_dir = planned_run(tmp_path / "one")
    (run_dir / "plan.json").write_text(text)
    assert "The plan, and what came of it" not in shown(run_dir)
