"""Collect the outcomes of all runs, and show them as tables.

A table's row is a policy; its numbers are means with intervals, and beside each is the paired difference from the
baseline. The population is what a claim is about: further targets where several were tried, whose seeds are averaged
first; further seeds otherwise. Two seeds of one target are more alike than two targets, so seeds x targets are no
independent pairs: 2 seeds of 5 targets are 5 values, not 10.

Runs with the same seed (and target) share base model, data and order of the seeds. So two policies are compared on
their differences, pair by pair, which vary much less than either mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from versatune_ds.comparison.outcome import MEASURES, SMALLER_IS_BETTER, Domains, loss_fall, outcome
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
class Mean:
    """A mean with its 95 % interval."""

    mean: float
    half_width: float
    """Half of the interval's length; NaN for a single value."""


def mean_with_interval(values: Sequence[float]) -> Mean:
    """Return the mean and Student's 95 % interval.

    Worked example: 1, 2, 3: mean 2, standard error 0.577, t(2) = 4.303, so 2 +- 2.484.
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return Mean(mean=mean, half_width=math.nan)
    if np.ptp(values) == 0:  # scipy's interval of equal values is NaN
        return Mean(mean=mean, half_width=0.0)
    low, high = map(float, stats.t.interval(0.95, len(values) - 1, loc=mean, scale=stats.sem(values)))
    return Mean(mean=mean, half_width=(high - low) / 2)


def paired_p_value(values: Sequence[float], baseline: Sequence[float]) -> float:
    """Return the two-sided p-value of Student's paired test; NaN for fewer than two pairs, 1 where all are equal."""
    differences = np.subtract(values, baseline)
    if len(differences) < 2:
        return math.nan
    if np.ptp(differences) == 0:  # scipy's test divides by zero
        return 1.0 if differences[0] == 0 else 0.0
    return float(stats.ttest_rel(values, baseline).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for being several, by Holm's step-down rule; NaN stays and does not count.

    scipy has no such correction (1.17: only those of the false discovery rate).

    Worked example: 0.01, 0.04, 0.03 of three: 0.03, 0.06, 0.06.
    """
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    corrected, largest = [math.nan] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """The evaluations of a comparison."""

    plan: ComparisonPlan
    base: Domains
    """The base model's evaluation by domain."""
    domains: Mapping[Cell, Domains]
    """Every run's evaluation by domain."""
    split: str
    """Of the examples they were evaluated on, test or valid."""
    weights: Mapping[Cell, Mapping[str, float]]
    """Every run's last weights by domain."""
    uniform: str | None = None
    """Label of the run on equal shares; gains over it are shares of the headroom. None where no mixtures were drawn."""
    fixed: tuple[str, ...] = ()
    """Labels of the runs whose mixture does not move."""
    predicted: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By planner: the mean loss it predicts of each mixture that was drawn."""

    def values_of_runs(self, label: str, measure: str) -> list[float]:
        """Return one measure of one policy, one value a run; empty if it was not measured.

        The order is that of seeds and targets: the same for every policy.
        """
        return self._values_of([cell for cell in self.domains if cell.label == label], measure)

    def _values_of(self, cells: Sequence[Cell], measure: str) -> list[float]:
        outcomes = [outcome(self.domains[cell], self.base, target=cell.target) for cell in cells]
        return [value for item in outcomes if (value := getattr(item, measure)) is not None]

    def values(self, label: str, measure: str) -> list[float]:
        """Return one measure's independent values of one policy: one a target if there are several, else one a seed.

        Worked example: target law 0.1 and 0.3 with seeds 1 and 2, target code 0.5 and 0.7: 0.2 and 0.6.
        """
        if len(self.plan.targets) < 2:
            return self.values_of_runs(label, measure)
        by_target = [self._values_of(self.cells(label, target), measure) for target in self.plan.targets]
        return [sum(values) / len(values) for values in by_target if values]

    def mean(self, label: str, measure: str) -> Mean:
        """Return one measure's mean over its independent values of one policy."""
        return mean_with_interval(self.values(label, measure))

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
    return f"| {' | '.join(cells)} |"


def p_values(results: Results, measure: str) -> dict[str, float]:
    """Return every policy's p-value against the baseline, by the paired test with Holm's correction."""
    baseline = results.values(results.plan.baseline, measure)
    others = [label for label in results.plan.runs if label != results.plan.baseline]
    uncorrected = [paired_p_value(results.values(label, measure), baseline) for label in others]
    return dict(zip(others, holm(uncorrected), strict=True))


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


def _cell(results: Results, label: str, measure: str, *, p: float | None) -> str:
    """Return a table cell: mean and interval, and the paired difference from the baseline with its star."""
    mean = results.mean(label, measure)
    half = "" if math.isnan(mean.half_width) else f" ± {number(mean.half_width, measure)}"
    text = f"{number(mean.mean, measure)}{half}"
    if p is None:
        return text
    pairs = zip(results.values(label, measure), results.values(results.plan.baseline, measure), strict=True)
    difference = mean_with_interval([value - other for value, other in pairs]).mean
    star = "\\*" if p < 0.05 else ""
    signed = f"{100 * difference:+.2f}" if measure in _AS_PERCENT else f"{difference:+.4f}"
    return f"{text} ({signed}{star})"


def number(value: float, measure: str) -> str:
    """Return a loss with four decimals, a share in percent with two."""
    return f"{100 * value:.2f} %" if measure in _AS_PERCENT else f"{value:.4f}"


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
