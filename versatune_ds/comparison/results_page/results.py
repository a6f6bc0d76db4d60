"""Collect the outcomes of all runs of a comparison, and pair those that belong together.

The population is what a claim is about: further targets where several were tried, whose seeds are averaged first;
further seeds otherwise. Two seeds of one target are more alike than two targets, so seeds x targets are no independent
pairs: 2 seeds of 5 targets are 5 values, not 10.

Runs with the same seed (and target) share base model, data and order of the seeds. So two policies are compared on
their differences, pair by pair, which vary much less than either mean. Runs may be missing, of a comparison that is not
complete: a mean is then over those that are there, and a difference over the pairs of which both are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from versatune_ds.comparison.cells import Cell
from versatune_ds.comparison.outcome import MEASURES, Domains, outcome
from versatune_ds.comparison.plan import ComparisonPlan
from versatune_ds.comparison.results_page.intervals import Mean, mean_with_interval

Value = Callable[[Cell], float | None]
"""A number of one run, None where it was not measured."""


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
