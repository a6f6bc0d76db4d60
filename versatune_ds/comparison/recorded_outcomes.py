"""The results of a comparison's runs as plain rows, read from its folder; runs that are not done are left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from versatune_ds.comparison.cells import Cell, cells_of
from versatune_ds.comparison.kept_results import BASE_FILE, folder_of, result_of
from versatune_ds.comparison.outcome import Domains, outcome
from versatune_ds.comparison.plan import ComparisonPlan
from versatune_ds.run_folder.atomic import read_json
from versatune_ds.run_folder.names import EVALUATION_FILE


def run_rows(plan: ComparisonPlan) -> Iterator[dict[str, Any]]:
    """Yield one row a run: label, target, seed, then its outcome; the fall of the target's loss is `target_fall`."""
    base = _base(plan)
    for cell in _done(plan):
        numbers = asdict(outcome(result_of(plan, cell), base, target=cell.target))
        yield _key(cell) | {"target_fall" if name == "target" else name: value for name, value in numbers.items()}


def domain_rows(plan: ComparisonPlan) -> Iterator[dict[str, Any]]:
    """Yield one row a run and domain: its loss, and the base model's, on the same rows."""
    base = _base(plan)
    for cell in _done(plan):
        for name, numbers in result_of(plan, cell).items():
            losses = {"loss": numbers.get("loss"), "base_loss": base.get(name, {}).get("loss")}
            yield _key(cell) | {"domain": name, **losses}


def _done(plan: ComparisonPlan) -> list[Cell]:
    """Return the runs that are evaluated; none before the base model is."""
    cells = cells_of(plan) if (plan.folder / BASE_FILE).is_file() else ()
    return [cell for cell in cells if (folder_of(plan, cell) / EVALUATION_FILE).is_file()]


def _base(plan: ComparisonPlan) -> Domains:
    """Return the base model's evaluation by domain; empty before there is one."""
    return (read_json(plan.folder / BASE_FILE) or {}).get("domains", {})


def _key(cell: Cell) -> dict[str, Any]:
    return {"run": cell.label, "target": cell.target, "seed": cell.seed}
