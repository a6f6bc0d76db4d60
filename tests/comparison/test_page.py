"""The findings follow from the numbers; the HTML is one file with the same text."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from versatune_ds.comparison.cells import cells_of
from versatune_ds.comparison.plan import BaseModelPlan, ComparisonPlan
from versatune_ds.comparison.results_page.page import findings, write_page
from versatune_ds.comparison.results_page.results import Results
from versatune_ds.comparison.results_page.table import markdown_table, retention_table

LOSSES = {"uniform": (1.5, 1.0), "better": (1.4, 0.9), "lucky": (1.49, 0.99), "forgets": (1.0, 1.2)}
"""Losses of law and code, which the base model has at 2.0 and 1.0."""


def make_results(tmp_path, *, targets=(), law="law"):
    runs = {label: {} for label in LOSSES}
    plan = ComparisonPlan(
        name="c", recipe="r", base=BaseModelPlan(recipe="r"), runs=runs, seeds=(1, 2, 3), baseline="uniform",
        targets=targets, output_dir=tmp_path,
    )  # fmt: skip
    base = {name: {"loss": loss, "num_examples": 7} for name, loss in ((law, 2.0), ("code", 1.0))}
    scatter = {1: -0.001, 2: 0.0, 3: 0.001}
    made, weights = {}, {}
    for cell in cells_of(plan):
        noise = scatter[cell.seed] * {"uniform": 1, "better": 2, "lucky": 100, "forgets": 3}[cell.label]
        loss_of_law, loss_of_code = LOSSES[cell.label]
        made[cell] = {law: {"loss": loss_of_law + noise}, "code": {"loss": loss_of_code + noise}}
        weights[cell] = {law: 0.75, "code": 0.25}
    return Results(plan=plan, base=base, domains=made, split="test", weights=weights)


def test_the_findings_list_the_best_the_significant_the_insignificant_and_the_forgetting_policies(tmp_path):
    assert findings(make_results(tmp_path)) == [
        "Mean loss: `forgets` is best, 1.1000 against 1.2500 for `uniform`.",
        "Worst domain: `better` is best, 10.00 % against 0.00 % for `uniform`.",
        "Better than `uniform` in both mean loss and worst domain, beyond noise (5 %, Holm): `better`.",
        "In both means, but not beyond noise in both: `lucky`.",
        "Worst domain more than 5 % worse than the base model's, in the mean: `forgets` (-20.00 %).",
    ]


def test_with_targets_policies_are_judged_by_the_targets_gain_and_the_other_domains(tmp_path):
    sentences = findings(make_results(tmp_path, targets=("law",)))
    assert sentences[0] == "Target's gain: `forgets` is best, 50.00 % against 25.00 % for `uniform`."
    assert sentences[1] == "Other domains: `better` is best, 10.00 % against 0.00 % for `uniform`."


@pytest.mark.parametrize("targets", [(), ("law", "code")])
def test_the_html_is_one_file_with_the_text_of_the_markdown(tmp_path, targets):
    results = make_results(tmp_path, targets=targets)
    results.plan.folder.mkdir()
    page = write_page(results, command="versatune compare '<b>.yaml'", versions={"torch": "2", "commit": None})
    text, html = page.read_text(), page.with_name("index.html").read_text()
    assert "Evaluated on test rows that no run trains on: law 7, code 7." in text
    assert "law 7, code 7." in html
    assert html.count("<tr>") == text.count("\n| ")
    assert "&lt;b&gt;.yaml" in html
    assert "<b>" not in html
    assert html.count('<img src="data:image/png;base64,') == text.count("![") == 3
    assert "http" not in html.replace("http-equiv", "")


def test_names_of_policies_and_domains_never_break_a_table(tmp_path):
    results = make_results(tmp_path, targets=("a|b*",), law="a|b*")
    cells = {replace(cell, label=f"|{cell.label}"): domains for cell, domains in results.domains.items()}
    plan = results.plan.model_copy(update={"runs": {f"|{label}": {} for label in LOSSES}, "baseline": "|uniform"})
    results = replace(results, plan=plan, domains=cells)
    for table, title in ((markdown_table(results), r"\|better"), (retention_table(results), r"\|better, a\|b\*")):
        lines = table.splitlines()
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
        assert any(line.startswith(f"| {title} | ") for line in lines)


def test_a_page_without_test_rows_states_that_its_rows_also_steer(tmp_path):
    results = replace(make_results(tmp_path), split="valid")
    results.plan.folder.mkdir()
    page = Path(write_page(results, command="c", versions={}))
    assert "evaluated on the held-out rows that also steer the mixture: law 7" in page.read_text()


def test_a_page_without_a_run_of_the_baseline_yet_calls_nothing_best(tmp_path):
    results = make_results(tmp_path)
    results.plan.folder.mkdir()
    made = {cell: domains for cell, domains in results.domains.items() if cell.label == "better"}
    text = write_page(replace(results, domains=made), command="c", versions={}).read_text()
    assert "is best" not in text
    assert "nan" not in text


@pytest.mark.parametrize("targets", [(), ("law", "code")])
def test_a_page_is_written_of_the_runs_that_are_there(tmp_path, targets):
    results = make_results(tmp_path, targets=targets)
    results.plan.folder.mkdir()
    made = {
        cell: domains
        for cell, domains in results.domains.items()
        if cell.label != "lucky" and (cell.label, cell.seed) != ("better", 2)
    }
    text = write_page(replace(results, domains=made), command="c", versions={}).read_text()
    assert "| lucky | - | - |" in text
    assert "nan" not in text
    assert "## Better, worse, or not beyond noise: each policy against `uniform`" in text
    assert ("## What the target's gain costs the others" in text) == bool(targets)
