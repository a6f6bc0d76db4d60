"""Collect the outcomes of all runs, and show them as tables.

A table's row is a policy; its numbers are means with intervals, and beside each is the paired difference from the
baseline. The population is what a claim is about: further targets where several were tried, whose seeds are averaged
first; further seeds otherwise. Two seeds of one target are more alike than two targets, so seeds x targets are no
independent pairs: 2 seeds of 5 targets are 5 values, not 10.

Runs with the same seed (and target) share base model, data and order of the seeds. So two policies are compared on
their differences, pair by pair, which vary much less than either mean. Runs may be missing, of a comparison that is not
complete: a mean is then over those that are there, and a difference over the pairs of which both are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from versatune_ds.comparison.outcome import AS_PERCENT, MEASURES, SMALLER_IS_BETTER, Domains, loss_fall, outcome
from versatune_ds.comparison.plan import Cell, ComparisonPlan
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
Value = Callable[[Cell], float | None]
"""A number of one run, None where it was not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """A mean with its 95 % interval."""

    mean: float
    half_width: float
    """Half of the interval's length; NaN for a single value."""


def mean_with_interval(values: Sequence[float]) -> Mean:
    """Return the mean and Student's 95 % interval; NaN without a value.

    Worked example: 1, 2, 3: mean 2, standard error 0.577, t(2) = 4.303, so 2 +- 2.484.
    """
    if not values:
        return Mean(mean=math.nan, half_width=math.nan)
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

    def value(self, cell: Cell, measure: str) -> float | None:
        """Return one measure of one run."""
        return getattr(outcome(self.domains[cell], self.base, target=cell.target), measure)

    def values(self, label: str, measure: str) -> list[float]:
        """Return one measure's independent values of one policy: one a target if there are several, else one a seed.

        Worked example: target law 0.1 and 0.3 with seeds 1 and 2, target code 0.5 and 0.7: 0.2 and 0.6.
        """
        return self.values_of(label, lambda cell: self.value(cell, measure))

    def values_of(self, label: str, value: Value) -> list[float]:
        """Return the independent values of any number of the runs of one policy; empty if it was not measured."""
        return [numbers[0] for numbers in self._by_unit([label], value)]

    def pairs(self, label: str, measure: str, *, baseline: str | None = None) -> list[tuple[float, float]]:
        """Return one measure's independent values of one policy, each with the baseline's.

        Args:
            label: The policy.
            measure: Field of an outcome.
            baseline: Label to pair with; the comparison's own baseline by default.
        """
        return self.pairs_of(label, lambda cell: self.value(cell, measure), baseline=baseline)

    def pairs_of(self, label: str, value: Value, *, baseline: str | None = None) -> list[tuple[float, float]]:
        """Return the same of any number of a run. Only runs whose partner is there too count."""
        numbers = self._by_unit([label, baseline or self.plan.baseline], value)
        return [(mine, other) for mine, other in numbers]

    def pairs_of_runs(self, label: str, measure: str) -> list[tuple[float, float]]:
        """Return the pairs of single runs with the baseline's, in the order of seeds and targets."""
        runs = self._runs([label, self.plan.baseline], lambda cell: self.value(cell, measure))
        return [(mine, other) for _, (mine, other) in runs]

    def _by_unit(self, labels: Sequence[str], value: Value) -> list[list[float]]:
        """Return the numbers of several policies, unit by unit: seeds are averaged where there are several targets."""
        runs = self._runs(labels, value)
        if len(self.plan.targets) < 2:
            return [numbers for _, numbers in runs]
        by_target = [[numbers for cell, numbers in runs if cell.target == target] for target in self.plan.targets]
        return [np.mean(rows, axis=0).tolist() for rows in by_target if rows]

    def _runs(self, labels: Sequence[str], value: Value) -> list[tuple[Cell, list[float]]]:
        """Return the seeds and targets that all of several policies have a number for, with their numbers."""
        found = []
        for cell in self.cells_of(labels[0]):
            mine = [cell, *(self._run(label, like=cell) for label in labels[1:])]
            numbers = [None if run is None else value(run) for run in mine]
            if None not in numbers:
                found.append((cell, numbers))
        return found

    def _run(self, label: str, *, like: Cell) -> Cell | None:
        """Return the run of another policy with the same seed and target, None where it is missing."""
        cells = self.cells(label, like.target)
        return next((cell for cell in cells if cell.seed == like.seed), None)

    def mean(self, label: str, measure: str) -> Mean:
        """Return one measure's mean over its independent values of one policy."""
        return mean_with_interval(self.values(label, measure))

    def measures(self) -> list[str]:
        """Return the measures that were taken."""
        return [measure for measure in MEASURES if any(self.values(label, measure) for label in self.plan.runs)]

    def rows(self) -> list[tuple[str, str | None]]:
        """Return (label, target) of every row of the tables that have a row a target."""
        return [(label, target) for label in self.plan.runs for target in self.plan.targets or (None,)]

    def cells(self, label: str, target: str | None) -> list[Cell]:
        """Return the runs of one of these rows, one a seed."""
        return [cell for cell in self.domains if (cell.label, cell.target) == (label, target)]

    def cells_of(self, label: str) -> list[Cell]:
        """Return all runs of a policy."""
        return [cell for cell in self.domains if cell.label == label]

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


def difference(pairs: Sequence[tuple[float, float]]) -> Mean:
    """Return the mean of the paired differences with its interval."""
    return mean_with_interval([value - other for value, other in pairs])


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
