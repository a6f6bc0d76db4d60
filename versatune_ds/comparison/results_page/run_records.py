"""Read from the folders of a comparison's runs what their training cost, and the held-out losses along the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from versatune_ds.comparison.cells import Cell
from versatune_ds.comparison.results_page.results import Results
from versatune_ds.report.series import RunSeries, read_series
from versatune_ds.run_folder.names import METRICS_FILE


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What a run recorded besides its evaluation."""

    num_tokens: int
    """Tokens it was trained on, padding excluded."""
    seconds: float
    """Of its training steps: without starting, measuring and saving."""
    losses: Mapping[str, Mapping[int, float]]
    """By domain and step: the loss of held-out rows, which are not the test rows."""


def run_records(results: Results) -> dict[Cell, RunRecord]:
    """Return the records of the runs whose folder is there; results of another machine may come without."""
    folders = {cell: results.plan.folder / "runs" / cell.run_name for cell in results.domains}
    return {cell: read_record(folder) for cell, folder in folders.items() if (folder / METRICS_FILE).is_file()}


def reference_records(results: Results) -> list[RunRecord]:
    """Return the records of the runs on one domain alone, and of the one on equal shares, that references are."""
    files = sorted((results.plan.start_folder / "reference").glob(f"*/*/{METRICS_FILE}"))
    return [read_record(file.parent) for file in files]


def read_record(run_dir: Path) -> RunRecord:
    """Return the record of one run's folder."""
    series = read_series(run_dir)
    tokens = (series.last(f"domain/{name}/num_tokens") for name in series.domain_names)
    return RunRecord(
        num_tokens=sum(int(value) for value in tokens if value is not None),
        seconds=_training_seconds(series),
        losses={name: dict(series.of(f"domain/{name}/loss")) for name in series.domain_names},
    )


def _training_seconds(series: RunSeries) -> float:
    """Return the sum over the lines of metrics of their steps times seconds a step.

    Worked example: 1.0 s a step at step 10 and 2.0 s at step 15: 20 s.
    """
    seconds, last_step = 0.0, 0
    for step, seconds_per_step in series.of("perf/step_seconds"):
        seconds += max(step - last_step, 0) * seconds_per_step
        last_step = max(step, last_step)
    return seconds
