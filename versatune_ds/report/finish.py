"""Write the report of a run, and print its table and the path of the page: at the end of a run, or when asked.

In the table, "before" is the measurement at step 0, "after" the last one recorded, a dash while there is no other. A
loss that ended higher by more than its noise is marked.
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from versatune_ds.progress import before_output
from versatune_ds.report.change_errors import NOISE_ERRORS, error_of_change
from versatune_ds.report.page import write_page
from versatune_ds.report.planned import PLAN_COLUMNS, plan_of, plan_rows, plan_sentences, track_table
from versatune_ds.report.series import RunSeries, read_series, requested_weights
from versatune_ds.run_folder.names import REPORT_FOLDER
from versatune_ds.text_table import number_cell, text_table

logger = logging.getLogger(__name__)

_HEADER = (
    "\ndomain", "loss\nbefore", "loss\nafter", "weight\nbefore", "weight\nafter", "share\nrequested", "share\nrealised",
    "\ntokens",
)  # fmt: skip


def show_summary(run_dir: Path) -> None:
    """Write a run's page, and its table and what to do next to stdout; an error here is logged and fails no run."""
    try:
        write_report([run_dir])
        sys.stdout.write(next_commands(run_dir))
        sys.stdout.flush()
    except Exception as error:  # the run is trained and saved: a full disk or an odd file must not end it with 1
        reason = f"{type(error).__name__}: {error}"
        logger.warning("no report of %s was written: %s; try: versatune report %s", run_dir, reason, run_dir)


def next_commands(run_dir: Path) -> str:
    """Return the commands that usually follow a complete run, one a line."""
    folder = shlex.quote(str(run_dir))
    commands = (
        f"versatune evaluate {folder}",
        f"versatune export {folder}",
    )
    return "".join(f"{'next' if number == 0 else '':<15}{command}\n" for number, command in enumerate(commands))


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
    page = write_page(runs, page_path(run_dirs, output=output))
    before_output()
    for run in runs:
        plots = [_plot(run, ending) for ending in pictures]
        paths = ["", f"run directory  {run.run_dir}", *(f"weights' plot  {plot}" for plot in plots)]
        lines = [summary_table(run), *_plan_lines(run), *paths]
        sys.stdout.write("\n{}\n".format("\n".join(lines)))
    sys.stdout.write(f"report         {page}\n")
    sys.stdout.flush()
    return page


def _plot(run: RunSeries, ending: str) -> Path:
    """Draw a run's weights and losses and return the picture's path."""
    from versatune_ds.report.plots import plot_weights  # importing matplotlib takes half a second

    return plot_weights(run, run.run_dir / REPORT_FOLDER / f"weights.{ending}")


def page_path(run_dirs: Sequence[Path], *, output: Path | None = None) -> Path:
    """Return where the page of runs is written: the output, else in the (first) run's report/."""
    return output or run_dirs[0] / REPORT_FOLDER / ("index.html" if len(run_dirs) == 1 else "compare.html")


def _plan_lines(series: RunSeries) -> list[str]:
    """Return what came of the plan that a run started from, as text; nothing for a run without one."""
    plan = plan_of(series)
    if plan is None:
        return []
    header = tuple(column.replace(" ", "\n", 1) for column in PLAN_COLUMNS)
    lines = ["", text_table(header, plan_rows(series, plan)), *plan_sentences(series, plan)]
    track = track_table(series, plan)
    if track is None:
        return lines
    columns, rows = track
    return [*lines, "", text_table(tuple("\n".join(column.rsplit(" ", 1)) for column in columns), rows)]


def summary_table(series: RunSeries) -> str:
    """Return losses, weights and shares by domain as aligned text, 80 columns for names up to 14 characters."""
    rises = {name: _rise_beyond_noise(series, name) for name in series.domain_names}
    _, weights = requested_weights(series)
    rows = [_domain_row(series, name, start=weights[name][0], is_worse=rises[name] > 0) for name in rises]
    table = text_table(_HEADER, rows)
    worse = ", ".join(f"{name} (+{rise:.3f})" for name, rise in rises.items() if rise > 0)
    return f"{table}\n* worse than before training: {worse}" if worse else table


def _domain_row(series: RunSeries, name: str, *, start: float | None, is_worse: bool) -> tuple[str, ...]:
    losses = series.of(f"domain/{name}/loss")
    return (
        name,
        number_cell(losses[0][1] if losses else None),
        number_cell(losses[-1][1] if len(losses) > 1 else None) + ("*" if is_worse else ""),
        number_cell(start),
        number_cell(series.last(f"domain/{name}/weight")),
        number_cell(series.last(f"domain/{name}/requested_share"), ".4f"),
        number_cell(series.last(f"domain/{name}/realised_share"), ".4f"),
        number_cell(series.last(f"domain/{name}/num_tokens"), ",.0f"),
    )


def _rise_beyond_noise(series: RunSeries, name: str) -> float:
    """Return by how many nats a domain's last held-out loss lies above its first; 0 within the noise of the change.

    The noise is twice the standard error of the change: that of the last decision, whose losses are of the same
    examples, or else that of two independent losses. Where no error is recorded every rise counts.
    """
    losses = series.of(f"domain/{name}/loss")
    if len(losses) < 2:
        return 0.0
    rise = losses[-1][1] - losses[0][1]
    return rise if rise > NOISE_ERRORS * (error_of_change(series, name) or 0.0) and rise > 0 else 0.0
