"""Run a comparison from its file to its page.

The same command resumes where it was stopped; once all results are there it only writes the page again.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path

from versatune_ds.comparison.jobs import evaluate_base, folder_of, num_jobs_of, result_of, run_cells, split_of
from versatune_ds.comparison.outcome import outcome
from versatune_ds.comparison.page import write_page
from versatune_ds.comparison.plan import Cell, ComparisonPlan, cells_of, read_plan
from versatune_ds.comparison.starting_point import make_starting_point
from versatune_ds.comparison.table import Results
from versatune_ds.distributed import World
from versatune_ds.launch.process_pool import gpu_names
from versatune_ds.report.series import read_series, requested_weights
from versatune_ds.run_folder.file_lock import locked
from versatune_ds.run_folder.folder import describe_environment

logger = logging.getLogger(__name__)


def compare(path: Path, overrides: Sequence[str], *, num_jobs: int | None) -> Path:
    """Make everything a comparison needs, and return the path of its page.

    Args:
        path: The comparison's YAML file.
        overrides: `key=value` texts over its keys.
        num_jobs: Runs at a time; by default one a GPU, or one a core.

    Raises:
        ValueError: For anything wrong in the file or a recipe it names, before anything is trained.
        RuntimeError: If a stage or a run fails.
    """
    plan = read_plan(path, overrides)
    gpus = gpu_names()
    num_jobs = num_jobs_of(num_jobs, gpus=gpus)
    with locked(plan.folder / "lock"):
        start = make_starting_point(plan, num_processes=min(num_jobs, len(gpus) or num_jobs))
        results = _results(plan, start=start, num_jobs=num_jobs, gpus=gpus)
        environment = describe_environment(World(rank=0, world_size=1, local_rank=0, launcher="single"))
        command = shlex.join(["versatune", "compare", str(path), *overrides])
        versions = {**environment["versions"], "commit": environment["commit"]}
        return write_page(results, command=command, versions=versions)


def _results(plan: ComparisonPlan, *, start: Sequence[str], num_jobs: int, gpus: tuple[str, ...]) -> Results:
    """Evaluate the base model, run every cell, and collect the results."""
    base, cells = evaluate_base(plan, start, gpus=gpus), list(cells_of(plan))

    def describe(cell: Cell) -> str:
        return outcome(result_of(plan, cell), base, target=cell.target).sentence()

    run_cells(plan, cells, start=start, num_jobs=num_jobs, gpus=gpus, describe=describe)
    return Results(
        plan=plan,
        base=base,
        domains={cell: result_of(plan, cell) for cell in cells},
        split=split_of(plan),
        weights={cell: last_weights(folder_of(plan, cell)) for cell in cells},
    )


def last_weights(run_dir: Path) -> dict[str, float]:
    """Return a run's last weights by domain; a domain without one, in a run that never decided, is omitted."""
    _, weights = requested_weights(read_series(run_dir))
    return {name: values[-1] for name, values in weights.items() if values[-1] is not None}
