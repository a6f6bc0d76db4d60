"""Write the table of what was learned and forgotten along the runs: first, middle and last measurement."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from versatune_ds.comparison.cells import Cell
from versatune_ds.comparison.results_page.results import Results
from versatune_ds.comparison.results_page.run_records import RunRecord
from versatune_ds.comparison.results_page.table import as_table
from versatune_ds.export.model_card import escaped

_HOW_TO_READ = """The first, the middle and the last measurement, on the held-out rows that also steer the mixture:
the last line of a policy differs a little from the table of {split} rows. Means over the runs of a policy{targets}.
Turned: the domain whose loss rose most from its lowest measurement to the last one, with that rise in percent of the
base model's loss; none where no domain rose by more than {turned:.0f} %."""

_TURNED = 0.01
"""Rise since the lowest measurement, as a share of the base model's loss, from which a domain counts as turned."""


def checkpoints_section(results: Results, records: Mapping[Cell, RunRecord]) -> list[str]:
    """Return the section's paragraphs; none where no run recorded a measurement after its first one."""
    names, columns = _columns(results)
    rows = []
    for label in results.plan.runs:
        found = {cell: records[cell] for cell in records if cell.label == label}
        steps = shared_steps(list(found.values()))
        for step in three_of(steps):
            texts = [_percent(_mean_over(found, column, step)) for column in columns.values()]
            turned = _turned(results, found) if step == steps[-1] else ""
            rows.append([escaped(label), str(step), *texts, turned])
    if not rows:
        return []
    targets = ", targets included" if results.plan.targets else ""
    return [
        "## Along the runs: relative fall of the held-out loss since the base model, in percent",
        "",
        as_table(["policy", "step", *names, "turned, %"], rows),
        "",
        _HOW_TO_READ.format(split=results.split, targets=targets, turned=100 * _TURNED),
        "",
    ]


def shared_steps(records: Sequence[RunRecord]) -> list[int]:
    """Return the steps after the first one at which all domains of all runs were measured, ascending."""
    measured = [set(by_step) for record in records for by_step in record.losses.values()]
    steps = sorted(set.intersection(*measured)) if measured else []
    return [step for step in steps if step > 0] if steps[:1] == [0] else []


def three_of(steps: Sequence[int]) -> list[int]:
    """Return the first, the middle and the last step, each once.

    Worked example: 15, 30, 45, 60 gives 15, 30, 60.
    """
    return list(dict.fromkeys([steps[0], steps[(len(steps) - 1) // 2], steps[-1]])) if steps else []


def falls_at(record: RunRecord, step: int) -> dict[str, float]:
    """Return by domain the relative fall of the loss from step 0 to a step.

    Worked example: 2.0 at step 0 and 1.5 now: 0.25.
    """
    return {name: 1 - by_step[step] / by_step[0] for name, by_step in record.losses.items()}


_Column = Callable[[Mapping[str, float], Cell], float]


def _columns(results: Results) -> tuple[list[str], dict[str, _Column]]:
    """Return the headings, and what they show of a run: domains, or with targets the target and the others."""
    if not results.plan.targets:
        names = results.domain_names()
        return [escaped(name) for name in names], {name: _domain_column(name) for name in names}

    def others(falls: Mapping[str, float], cell: Cell) -> list[float]:
        return [fall for name, fall in falls.items() if name != cell.target]

    columns: dict[str, _Column] = {
        "target": lambda falls, cell: falls.get(cell.target or "", math.nan),
        "other domains, mean": lambda falls, cell: float(np.mean(others(falls, cell))),
        "worst other domain": lambda falls, cell: min(others(falls, cell)),
    }
    return list(columns), columns


def _domain_column(name: str) -> _Column:
    return lambda falls, cell: falls.get(name, math.nan)


def _mean_over(records: Mapping[Cell, RunRecord], of: _Column, step: int) -> float:
    return float(np.mean([of(falls_at(record, step), cell) for cell, record in records.items()]))


def _turned(results: Results, records: Mapping[Cell, RunRecord]) -> str:
    """Return the domain that rose most since its lowest measurement, and by how much, in the mean over runs."""
    rises = {
        name: float(np.mean([rise_since_lowest(record.losses[name]) for record in records.values()]))
        for name in results.domain_names()
        if all(name in record.losses for record in records.values())
    }
    name = max(rises, key=rises.__getitem__, default=None)
    return "none" if name is None or rises[name] <= _TURNED else f"{escaped(name)} {100 * rises[name]:.1f}"


def rise_since_lowest(losses: Mapping[int, float]) -> float:
    """Return the rise from the lowest loss to the last one, as a share of the first.

    Worked example: 2.0, 1.0, 1.5: 0.25.
    """
    steps = sorted(losses)
    return (losses[steps[-1]] - min(losses.values())) / losses[steps[0]]


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:+.1f}"
