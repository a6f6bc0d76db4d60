"""Write the report of a run, and print its table and the path of the page: at the end of a run, or when asked."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from versatune_ds.report.page import write_page
from versatune_ds.report.plots import plot_weights
from versatune_ds.report.series import read_series
from versatune_ds.report.table import summary_table
from versatune_ds.run_folder.names import REPORT_FOLDER

logger = logging.getLogger(__name__)


def show_summary(run_dir: Path) -> None:
    """Write a run's page, and its table to stdout; an error here is logged and never fails the run."""
    try:
        write_report([run_dir])
    except Exception as error:  # the run is trained and saved: a full disk or an odd file must not end it with 1
        reason = f"{type(error).__name__}: {error}"
        logger.warning("no report of %s was written: %s; try: versatune report %s", run_dir, reason, run_dir)


def write_report(run_dirs: Sequence[Path], *, output: Path | None = None, pictures: Sequence[str] = ()) -> Path:
    """Write the page of one or several runs, print their tables and all paths to stdout; return the page's path.

    Args:
        run_dirs: Folders of runs.
        output: The page to write; default: report/index.html in the run's folder, report/compare.html in the first's.
        pictures: "png", "svg": also draw each run's weights and losses as weights.png or weights.svg in its report/.

    Raises:
        ValueError: If a folder is not a run's.
    """
    runs = [read_series(run_dir) for run_dir in run_dirs]
    page = output or run_dirs[0] / REPORT_FOLDER / ("index.html" if len(runs) == 1 else "compare.html")
    write_page(runs, page)
    for run in runs:
        plots = [plot_weights(run, run.run_dir / REPORT_FOLDER / f"weights.{ending}") for ending in pictures]
        lines = [summary_table(run), "", f"run directory  {run.run_dir}", *(f"weights' plot  {plot}" for plot in plots)]
        sys.stdout.write("\n{}\n".format("\n".join(lines)))
    sys.stdout.write(f"report         {page}\n")
    sys.stdout.flush()
    return page
