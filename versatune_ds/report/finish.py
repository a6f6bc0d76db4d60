"""Show at the end of a run what came out of it."""

from __future__ import annotations

import sys
from pathlib import Path

from versatune_ds.report.plots import plot_weights
from versatune_ds.report.series import read_series
from versatune_ds.report.table import summary_table


def show_summary(run_dir: Path) -> None:
    """Write the table, the run directory and the path of the weights' plot to stdout."""
    series = read_series(run_dir)
    plot = plot_weights(series, run_dir / "report" / "weights.png")
    sys.stdout.write(f"\n{summary_table(series)}\n\nrun directory  {run_dir}\nweights' plot  {plot}\n")
    sys.stdout.flush()
