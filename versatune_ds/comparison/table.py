"""Collect the outcomes of all runs, and show them as tables.

A table's row is a policy; its numbers are means with intervals, and beside each is the paired difference from the
baseline. The population is what a claim is about: further targets where several were tried, whose seeds are averaged
first; further seeds otherwise. Two seeds of one target are more alike than two targets, so seeds x targets are no
independent pairs: 2 seeds of 5 targets are 5 values, not 10.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from versatune_ds.comparison.intervals import Mean, holm, mean_with_interval, paired_p_value
from versatune_ds.comparison.outcome import MEASURES, SMALLER_IS_BETTER, Domains, Outcome, loss_fall, outcome
from versatune_ds.comparison.plan import Cell, ComparisonPlan
from versatune_ds.export.model_card import escaped

HEADINGS = {
    "loss": "mean loss",
    "exact": "exact answers",
    "choices": "right choices",
    "worst": "worst domain",
    "target": "target's gain",
    "others": "other domains",
    "others_exact": "others' answers",
}
_AS_PERCENT = frozenset(MEASURES) - {"loss"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """The evaluations of a comparison.

    Attributes:
        plan: What was compared.
        base: The base model's evaluation by domain.
        domains: Every run's evaluation by domain.
        split: Of the examples they were evaluated on, test or valid.
        weights: Every run's last weights by domain.
    """

    plan: ComparisonPlan
    base: Domains
    domains: Mapping[Cell, Domains]
    split: str
    weights: Mapping[Cell, Mapping[str, float]]

    def outcomes(self, label: str) -> list[Outcome]:
        """Return the outcomes of one policy, in the order of seeds and targets: the same for every policy."""
        return [
            outcome(domains, self.base, target=cell.target)
            for cell, domains in self.domains.items()
            if cell.label == label
        ]

    def values_of_runs(self, label: str, measure: str) -> list[float]:
        """Return one measure of one policy, one value a run; empty if it was not measured."""
        return [value for item in self.outcomes(label) if (value := getattr(item, measure)) is not None]

    def values(self, label: str, measure: str) -> list[float]:
        """Return one measure's independent values of one policy: one a target if there are several, else one a seed.

        Worked example: target law 0.1 and 0.3 with seeds 1 and 2, target code 0.5 and 0.7: 0.2 and 0.6.
        """
        if len(self.plan.targets) < 2:
            return self.values_of_runs(label, measure)
        means = []
        for target in self.plan.targets:
            runs = [outcome(self.domains[cell], self.base, target=target) for cell in self.cells(label, target)]
            values = [value for item in runs if (value := getattr(item, measure)) is not None]
            if values:
                means.append(sum(values) / len(values))
        return means

    def measures(self) -> list[str]:
        """Return the measures that were taken."""
        return [measure for measure in MEASURES if self.values(self.plan.baseline, measure)]

    def rows(self) -> list[tuple[str, str | None]]:
        """Return (label, target) of every row of the tables that have a row a target."""
        return [(label, target) for label in self.plan.runs for target in self.plan.targets or (None,)]

    def cells(self, label: str, target: str | None) -> list[Cell]:
        """Return the runs of one of these rows, one a seed."""
        return [cell for cell in self.domains if (cell.label, cell.target) == (label, target)]

    def domain_names(self) -> list[str]:
        """Return the domains that were measured."""
        return [name for name, numbers in self.base.items() if numbers.get("loss") is not None]


def judged_by(results: Results) -> tuple[str, str]:
    """Return the two measures that a policy is judged by."""
    return ("target", "others") if results.plan.targets else ("loss", "worst")


def markdown_table(results: Results) -> str:
    """Return one row a policy: every measure's mean with its interval and, behind it, the difference from the baseline.

    A star marks a paired difference that differs from 0 at 5 % after Holm's correction over the policies.
    """
    measures = results.measures()
    p_by_measure = {measure: p_values(results, measure) for measure in measures}
    headings = ["policy", *(HEADINGS[measure] for measure in measures), "seeds won"]
    lines = [_line(headings), "|---|" + "---:|" * (len(measures) + 1)]
    for label in results.plan.runs:
        cells = [_cell(results, label, measure, p=p_by_measure[measure].get(label)) for measure in measures]
        lines.append(_line([escaped(label), *cells, _won(results, label)]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    """Return one line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def p_values(results: Results, measure: str) -> dict[str, float]:
    """Return every policy's p-value against the baseline, by the paired test with Holm's correction."""
    others = [label for label in results.plan.runs if label != results.plan.baseline]
    return dict(zip(others, holm([_p_value(results, label, measure) for label in others]), strict=True))


def _won(results: Results, label: str) -> str:
    """Return in how many pairs of runs a policy did better than the baseline: in mean loss, or the other domains."""
    if label == results.plan.baseline:
        return "-"
    measure = "others" if results.plan.targets else "loss"
    baseline = results.plan.baseline
    pairs = list(zip(results.values_of_runs(label, measure), results.values_of_runs(baseline, measure), strict=True))
    return f"{sum(is_better(value, other, measure) for value, other in pairs)} of {len(pairs)}"


def is_better(value: float, other: float, measure: str) -> bool:
    """Return whether a value is better than another one."""
    return value < other if measure in SMALLER_IS_BETTER else value > other


def _p_value(results: Results, label: str, measure: str) -> float:
    """Return the paired test's p-value of a policy against the baseline."""
    return paired_p_value(results.values(label, measure), results.values(results.plan.baseline, measure))


def _cell(results: Results, label: str, measure: str, *, p: float | None) -> str:
    """Return a table cell: mean and interval, and the paired difference from the baseline with its star."""
    values = results.values(label, measure)
    text = _with_interval(mean_with_interval(values), measure)
    if p is None:
        return text
    baseline = results.values(results.plan.baseline, measure)
    difference = mean_with_interval([value - other for value, other in zip(values, baseline, strict=True)]).mean
    star = "\\*" if p < 0.05 else ""
    return f"{text} ({_signed(difference, measure)}{star})"


def _with_interval(mean: Mean, measure: str) -> str:
    """Return a mean and half its interval."""
    half = "" if math.isnan(mean.half_width) else f" ± {number(mean.half_width, measure)}"
    return f"{number(mean.mean, measure)}{half}"


def number(value: float, measure: str) -> str:
    """Return a loss with four decimals, a share in percent with two."""
    return f"{100 * value:.2f} %" if measure in _AS_PERCENT else f"{value:.4f}"


def _signed(value: float, measure: str) -> str:
    """Return a difference with its sign."""
    return f"{100 * value:+.2f}" if measure in _AS_PERCENT else f"{value:+.4f}"


def retention_table(results: Results) -> str:
    """Return the retention matrix in percent, the targets' own cells in bold."""
    names = results.domain_names()
    lines = [_line(["policy", *map(escaped, names)]), "|---|" + "---:|" * len(names)]
    for (label, target), values in zip(results.rows(), retention(results), strict=True):
        texts = [f"{100 * value:+.1f}" for value in values]
        cells = [f"**{text}**" if name == target else text for name, text in zip(names, texts, strict=True)]
        lines.append(_line([escaped(row_title(label, target)), *cells]))
    return "\n".join(lines)


def retention(results: Results) -> list[list[float]]:
    """Return the retention matrix: by row and domain, the mean relative fall of the test loss since the base model."""
    runs = [[results.domains[cell] for cell in results.cells(label, target)] for label, target in results.rows()]
    return [
        [sum(loss_fall(run, results.base, name) for run in row) / len(row) for name in results.domain_names()]
        for row in runs
    ]


def row_title(label: str, target: str | None) -> str:
    """Return a row's title."""
    return label if target is None else f"{label}, {target}"
