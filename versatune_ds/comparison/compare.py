"""Run a comparison from its file to its page.

The one idea: the same command goes on where it was stopped, and once all is there only writes the page again.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from versatune_ds.comparison.jobs import evaluation_options, result_of, run_cells
from versatune_ds.comparison.page import write_page
from versatune_ds.comparison.plan import ComparisonPlan, cells_of, read_plan, texts
from versatune_ds.comparison.starting_point import make_starting_point
from versatune_ds.comparison.table import Results
from versatune_ds.distributed import World
from versatune_ds.training.evaluation.command import evaluate
from versatune_ds.training.run_folder import describe_environment

logger = logging.getLogger(__name__)


def compare(path: Path, overrides: Sequence[str], *, num_jobs: int | None) -> Path:
    """Make everything a comparison needs, and return the path of its page.

    Args:
        path: The comparison's YAML file.
        overrides: `key=value` texts over its keys.
        num_jobs: Runs under way at a time; by default one a core.

    Raises:
        ValueError: For anything wrong in the file or a recipe it names, before anything is trained.
        RuntimeError: If a stage or a run fails.
    """
    plan = read_plan(path, overrides)
    num_jobs = num_jobs or len(os.sched_getaffinity(0))
    if num_jobs < 1:
        raise ValueError(f"--jobs={num_jobs}: expected 1 or more")
    start = make_starting_point(plan, num_processes=num_jobs)
    cells = list(cells_of(plan))
    run_cells(plan, cells, start=start, num_jobs=num_jobs)
    base = _evaluate_base(plan, start)
    results = Results(plan=plan, base=base, domains={cell: result_of(plan, cell) for cell in cells})
    environment = describe_environment(World(rank=0, world_size=1, local_rank=0, launcher="single"))
    command = shlex.join(["versatune", "compare", str(path), *overrides])
    versions = {**environment["versions"], "commit": environment["commit"]}
    return write_page(results, command=command, versions=versions)


def _evaluate_base(plan: ComparisonPlan, start: Sequence[str]) -> dict[str, Any]:
    """Return the base model's evaluation, made once, on the same rows as every run's."""
    path = plan.folder / "base_evaluation.json"
    if not path.is_file():
        overrides = [*start, *texts(plan.set)]
        options = replace(evaluation_options(plan), recipe=plan.recipe, overrides=overrides, output=path)
        evaluate(plan.folder / "base_model", options)
    return json.loads(path.read_text(encoding="utf-8"))["domains"]
