"""Show the outcomes of all runs as tables.

A table's row is a policy; its numbers are means with intervals, and beside each is the paired difference from the
baseline. `results.py` says what the independent values and pairs are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from versatune_ds.comparison.outcome import AS_PERCENT, SMALLER_IS_BETTER, loss_fall
from versatune_ds.comparison.results_page.intervals import difference, holm, paired_p_value
from versatune_ds.comparison.results_page.results import Results
from versatune_ds.export.model_card import escaped

HEADINGS = {
    "loss": "mean loss",
    "bits": "mean bits a byte",
    "exact": "exact answers",
    "choices": "right choices",
    "worst": "worst domain",
    "target": "target's gain",
    "others": "other domains",
    "others_exact": "others' answers",
}
UNITS = {"loss": "nats a token", "bits": "bits"}
"""Of the measures that are not written in percent."""


def judged_by(results: Results) -> tuple[str, str]:
    """Return the two measures that a policy is judged by."""
    return ("target", "others") if results.plan.targets else ("loss", "worst")


def markdown_table(results: Results) -> str:
    """Return one row a policy: every measure's mean with its interval and, behind it, the difference from the baseline.

    A star marks a paired difference that differs from 0 at 5 % after Holm's correction over the policies.
    """
    measures = results.measures()
    p_by_measure = {measure: p_values(results, measure) for measure in measures}
    rows = []
    for label in results.plan.runs:
        cells = [_cell(results, label, measure, p=p_by_measure[measure].get(label)) for measure in measures]
        rows.append([escaped(label), *cells, _won(results, label)])
    return as_table(["policy", *map(heading, measures), "seeds won"], rows)


def heading(measure: str) -> str:
    """Return a measure's heading with its unit."""
    return f"{HEADINGS[measure]}, {UNITS.get(measure, '%')}"


def as_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, whose first column is text and whose others are numbers."""
    lines = [f"| {' | '.join(cells)} |" for cells in (headings, *rows)]
    return "\n".join([lines[0], "|---|" + "---:|" * (len(headings) - 1), *lines[1:]])


def p_values(results: Results, measure: str, *, baseline: str | None = None) -> dict[str, float]:
    """Return every policy's p-value against the baseline, by the paired test with Holm's correction."""
    baseline = baseline or results.plan.baseline
    others = [label for label in results.plan.runs if label != baseline]
    pairs = [results.pairs(label, measure, baseline=baseline) for label in others]
    uncorrected = [paired_p_value([v for v, _ in of_label], [b for _, b in of_label]) for of_label in pairs]
    return dict(zip(others, holm(uncorrected), strict=True))


def _won(results: Results, label: str) -> str:
    """Return in how many pairs of runs a policy did better than the baseline: in mean loss, or the other domains."""
    if label == results.plan.baseline:
        return "-"
    measure = "others" if results.plan.targets else "loss"
    pairs = results.pairs_of_runs(label, measure)
    return f"{sum(is_better(value, other, measure) for value, other in pairs)} of {len(pairs)}"


def is_better(value: float, other: float, measure: str) -> bool:
    """Return whether a value is better than another one."""
    return value < other if measure in SMALLER_IS_BETTER else value > other


def _cell(results: Results, label: str, measure: str, *, p: float | None) -> str:
    """Return a table cell: mean and interval, and the paired difference from the baseline with its star."""
    mean = results.mean(label, measure)
    if math.isnan(mean.mean):
        return "-"
    half = "" if math.isnan(mean.half_width) else f" ± {number(mean.half_width, measure)}"
    text = f"{number(mean.mean, measure)}{half}"
    change = difference(results.pairs(label, measure)).mean
    if p is None or math.isnan(change):
        return text
    star = "\\*" if p < 0.05 else ""
    signed = f"{100 * change:+.2f}" if measure in AS_PERCENT else f"{change:+.4f}"
    return f"{text} ({signed}{star})"


def number(value: float, measure: str) -> str:
    """Return a loss with four decimals, a share in percent with two."""
    return f"{100 * value:.2f} %" if measure in AS_PERCENT else f"{value:.4f}"


def retention_table(results: Results) -> str:
    """Return the retention matrix in percent, the targets' own cells in bold."""
    names, rows = results.domain_names(), []
    for (label, target), values in zip(results.rows(), retention(results), strict=True):
        texts = ["-" if math.isnan(value) else f"{100 * value:+.1f}" for value in values]
        cells = [f"**{text}**" if name == target else text for name, text in zip(names, texts, strict=True)]
        rows.append([escaped(row_title(label, target)), *cells])
    return as_table(["policy", *map(escaped, names)], rows)


def retention(results: Results) -> list[list[float]]:
    """Return the retention matrix: by row and domain, the mean relative fall of the test loss since the base model.

    NaN in a row none of whose runs is there.
    """
    runs = [[results.domains[cell] for cell in results.cells(label, target)] for label, target in results.rows()]
    return [
        [float(np.mean([loss_fall(run, results.base, name) for run in row])) if row else math.nan for name in names]
        for names, row in ((results.domain_names(), row) for row in runs)
    ]


def row_title(label: str, target: str | None) -> str:
    """Return a row's title."""
    return label if target is None else f"{label}, {target}"
