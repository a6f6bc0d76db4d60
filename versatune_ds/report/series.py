"""Read a run directory into series of numbers.

The one idea: every table, plot and page is made from the files of the run directory alone, so it works on a run that
is finished, running or killed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSeries:
    """Hold what a run recorded, in the order of its steps."""

    run_dir: Path
    domain_names: tuple[str, ...]
    metrics: tuple[dict[str, Any], ...]
    decisions: tuple[dict[str, Any], ...]

    def of(self, name: str) -> list[tuple[int, float]]:
        """Return the (step, value) pairs of one metric; a missing or null value is left out."""
        return [(line["step"], line[name]) for line in self.metrics if line.get(name) is not None]

    def last(self, name: str) -> float | None:
        """Return a metric's last value, None where it was never recorded."""
        values = self.of(name)
        return values[-1][1] if values else None


def read_series(run_dir: Path) -> RunSeries:
    """Return the series of a run directory.

    Raises:
        ValueError: If the folder is no run's, or the run has not decided anything yet.
    """
    decisions = tuple(read_json_lines(run_dir / "decisions.jsonl"))
    if not decisions:
        raise ValueError(f"{run_dir}: no decisions.jsonl with a decision; expected the folder of a run (runs/NAME)")
    return RunSeries(
        run_dir=run_dir,
        domain_names=tuple(decisions[0]["weights_after"]),
        metrics=tuple(read_json_lines(run_dir / "metrics.jsonl")),
        decisions=decisions,
    )


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file; a last line still being written is left out, a missing file is empty."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return
