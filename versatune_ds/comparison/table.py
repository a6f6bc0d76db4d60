"""Gather the outcomes of all runs, and say them as tables.

The one idea: a table's row is a policy, its numbers are means over repetitions (seeds, and targets where there are any)
with intervals, and beside each stands the paired difference from the baseline.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from versatune_ds.comparison.intervals import Mean, holm, mean_with_interval, paired_p_value
from versatune_ds.comparison.outcome import MEASURES, Domains, Outcome, loss_fall, outcome
from versatune_ds.comparison.plan import Cell, ComparisonPlan

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
    """Hold the evaluations of a comparison.

    Attributes:
        plan: What was compared.
        base: The base model's evaluation by domain.
        domains: Every run's evaluation by domain.
    """

    plan: ComparisonPlan
    base: Domains
    domains: Mapping[Cell, Domains]

    def outcomes(self, label: str) -> list[Outcome]:
        """Return the outcomes of one policy, in the order of seeds and targets: the same for every policy."""
        return [
            outcome(domains, self.base, target=cell.target)
            for cell, domains in self.domains.items()
            if cell.label == label
        ]

    def values(self, label: str, measure: str) -> list[float]:
        """Return one measure of one policy; empty where it was not measured."""
        return [value for item in self.outcomes(label) if (value := getattr(item, measure)) is not None]

    def measures(self) -> list[str]:
        """Return the measures that were taken."""
        return [measure for measure in MEASURES if self.values(self.plan.baseline, measure)]


def markdown_table(results: Results) -> str:
    """Return one row a policy: every measure's mean with its interval and, behind it, the difference from the baseline.

    A star says that the paired difference differs from 0 at 5 % after Holm's correction over the policies.
    """
    plan, measures = results.plan, results.measures()
    others = [label for label in plan.runs if label != plan.baseline]
    p_values = {
        measure: dict(zip(others, holm([_p_value(results, label, measure) for label in others]), strict=True))
        for measure in measures
    }
    lines = [
        "| policy | " + " | ".join(HEADINGS[measure] for measure in measures) + " |",
        "|---|" + "---:|" * len(measures),
    ]
    for label in plan.runs:
        cells = [_cell(results, label, measure, p=p_values[measure].get(label)) for measure in measures]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


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
    half = "" if math.isnan(mean.half_width) else f" ± {_number(mean.half_width, measure)}"
    return f"{_number(mean.mean, measure)}{half}"


def _number(value: float, measure: str) -> str:
    """Return a loss with four digits behind the point, a share in percent with two."""
    return f"{100 * value:.2f} %" if measure in _AS_PERCENT else f"{value:.4f}"


def _signed(value: float, measure: str) -> str:
    """Return a difference with its sign."""
    return f"{100 * value:+.2f}" if measure in _AS_PERCENT else f"{value:+.4f}"


def retention_table(results: Results) -> str:
    """Return the retention matrix: by policy and domain, the mean relative fall of the test loss since the base model.

    With targets there is a row for every policy and target, the target's own cell in bold.
    """
    names = [name for name, numbers in results.base.items() if numbers.get("loss") is not None]
    lines = ["| policy | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for label in results.plan.runs:
        for target in results.plan.targets or (None,):
            runs = [d for cell, d in results.domains.items() if (cell.label, cell.target) == (label, target)]
            cells = [_retained(runs, results.base, name, is_target=name == target) for name in names]
            heading = label if target is None else f"{label}, {target}"
            lines.append(f"| {heading} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _retained(runs: Sequence[Domains], base: Domains, name: str, *, is_target: bool) -> str:
    """Return the mean relative fall of one domain's loss, in percent."""
    mean = sum(loss_fall(run, base, name) for run in runs) / len(runs)
    text = f"{100 * mean:+.1f}"
    return f"**{text}**" if is_target else text
