"""Run a comparison from its file to its page.

The same command resumes where it was stopped; once all results are there it only writes the page again.
"""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from versatune_ds.comparison.cell_runs import SECONDS_FILE, evaluate_base, run_cells
from versatune_ds.comparison.cells import Cell, cells_of, config_of_cell
from versatune_ds.comparison.comparison_file import read_plan
from versatune_ds.comparison.complete_block import complete_block, missing_sentence
from versatune_ds.comparison.headroom import follow_up_cells
from versatune_ds.comparison.kept_results import (
    folder_of,
    result_of,
    split_of,
)
from versatune_ds.comparison.order import in_order
from versatune_ds.comparison.outcome import Domains
from versatune_ds.comparison.pack import load_results, load_start, write_pack
from versatune_ds.comparison.pack_file import read_pack
from versatune_ds.comparison.plan import ComparisonPlan
from versatune_ds.comparison.predictions import predicted_means
from versatune_ds.comparison.results_page.page import write_page
from versatune_ds.comparison.results_page.results import Results
from versatune_ds.comparison.starting_point import make_starting_point
from versatune_ds.distributed import World
from versatune_ds.launch.process_pool import gpu_names
from versatune_ds.launch.time_budget import OutOfTimeError, TimeBudget
from versatune_ds.mixture.policies.fixed import UNIFORM
from versatune_ds.report.series import read_series, requested_weights
from versatune_ds.run_folder.atomic import read_json
from versatune_ds.run_folder.file_lock import locked
from versatune_ds.run_folder.folder import describe_environment
from versatune_ds.run_folder.names import EVALUATION_FILE

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareOptions:
    """How a comparison is run; none of it changes a result."""

    num_jobs: int | None = None
    """Runs at a time; by default one a GPU, or one a core."""
    jobs_per_gpu: int | None = None
    """The same, for each GPU."""
    budget_seconds: float | None = None
    """Time after which the command ends with what is done; by default there is no limit."""
    run_seconds: float | None = None
    """How long a run takes, until one is done."""
    pack: Path | None = None
    """File that all results are written to, for another machine."""
    continued: Path | None = None
    """Such a file of another machine, whose results are loaded first."""
    began: float | None = None
    """When the command began (monotonic seconds)."""

    def __post_init__(self) -> None:
        for option, value in (("--budget-seconds", self.budget_seconds), ("--run-seconds", self.run_seconds)):
            if value is not None and not value >= 0:
                raise ValueError(f"{option}={value:g}: expected seconds, 0 or more")

    def words(self) -> list[str]:
        """Return the options as on the command line."""
        values = {"--jobs": self.num_jobs, "--jobs-per-gpu": self.jobs_per_gpu}
        values |= {"--budget-seconds": self.budget_seconds, "--run-seconds": self.run_seconds}
        words = [word for option, value in values.items() if value is not None for word in (option, f"{value:g}")]
        return words if self.pack is None else [*words, "--pack", str(self.pack)]


def compare(path: Path, overrides: Sequence[str], options: CompareOptions = CompareOptions()) -> Path | None:
    """Make everything a comparison needs, and return the path of its page.

    Args:
        path: The comparison's YAML file.
        overrides: `key=value` texts over its keys.
        options: How it is run.

    Returns:
        The page; None where the time was over before there was anything to compare.

    Raises:
        ValueError: For anything wrong in the file or a recipe it names, before anything is trained.
        RuntimeError: If a stage or a run fails.
    """
    plan = read_plan(path, overrides)
    gpus = gpu_names()
    num_jobs = num_jobs_of(options.num_jobs, per_gpu=options.jobs_per_gpu, gpus=gpus)
    budget = TimeBudget(options.budget_seconds, guess_seconds=options.run_seconds, began=options.began)
    budget.guess((read_json(plan.folder / SECONDS_FILE) or {}).get("longest"))
    command = shlex.join(["versatune", "compare", str(path), *overrides])
    carried = None if options.continued is None else read_pack(options.continued)
    if options.pack is not None and not options.pack.parent.is_dir():
        raise ValueError(f"--pack: {options.pack}: expected a file in an existing folder")
    with locked(plan.folder / "lock", what="this comparison's folder"):
        results, cells, what = None, list(cells_of(plan)), "its runs"
        try:
            if carried is not None:
                load_start(carried, plan)
            start = make_starting_point(plan, num_processes=min(num_jobs, len(gpus) or num_jobs), budget=budget)
            if carried is not None:
                load_results(carried, plan, start)
            results, cells = _results(plan, start=start, num_jobs=num_jobs, gpus=gpus, budget=budget)
        except OutOfTimeError as error:
            what = str(error)
        finally:  # a comparison that failed has results to carry too
            if options.pack is not None:
                write_pack(plan, options.pack)
        page = None if results is None else _write_page(results, cells, command=command)
        if budget.seconds is not None:
            done = [cell for cell in cells if (folder_of(plan, cell) / EVALUATION_FILE).is_file()]
            _log_end(cells, done, what=what, command=shlex.join([command, *options.words()]), budget=budget)
        return page


def _write_page(results: Results, cells: Sequence[Cell], *, command: str) -> Path | None:
    """Write the page, of an incomplete comparison about what is complete; None where nothing is."""
    missing, done = None, list(results.domains)
    if len(done) < len(cells):
        block = complete_block(results.plan, done)
        if block is None:
            logger.info("no page: the baseline %s has no result yet", results.plan.baseline)
            return None
        plan, shown = block
        missing = missing_sentence(cells, done=done, shown=shown)
        results = replace(
            results,
            plan=plan,
            domains={cell: results.domains[cell] for cell in done if cell in shown},
            weights={cell: results.weights[cell] for cell in done if cell in shown},
            uniform=results.uniform if plan.static else None,
        )
    environment = describe_environment(World(rank=0, world_size=1, local_rank=0, launcher="single"))
    versions = {**environment["versions"], "commit": environment["commit"]}
    return write_page(results, command=command, versions=versions, missing=missing)


def _log_end(cells: Sequence[Cell], done: Sequence[Cell], *, what: str, command: str, budget: TimeBudget) -> None:
    """Log in one line how many runs are done, what remains, and the command that resumes."""
    missing = [cell.run_name for cell in cells if cell not in done]
    if not missing:
        logger.info("all %d runs are done", len(cells))
        return
    names = ", ".join(missing[:6]) + (f" and {len(missing) - 6} more" if len(missing) > 6 else "")
    logger.info(
        "%g s are over in %s: %d of %d runs done, %d remain (%s); to resume: %s",
        budget.seconds,
        what,
        len(done),
        len(cells),
        len(missing),
        names,
        command,
    )


def _results(
    plan: ComparisonPlan, *, start: Sequence[str], num_jobs: int, gpus: tuple[str, ...], budget: TimeBudget
) -> tuple[Results, list[Cell]]:
    """Evaluate the base model, run every cell, and return the results and all cells, those without a result too."""
    base, cells = evaluate_base(plan, start, gpus=gpus, budget=budget), list(cells_of(plan))
    settings = {"base": base, "start": start, "num_jobs": num_jobs, "gpus": gpus, "budget": budget}
    remaining = run_cells(plan, in_order(cells, plan.order), **settings)
    results = _collected(plan, [cell for cell in cells if cell not in remaining], base=base, start=start)
    if not remaining and (more := follow_up_cells(results)):
        logger.info("%s is the best fixed mixture drawn; it is trained with the other seeds too", more[0].label)
        remaining, cells = run_cells(plan, more, **settings), [*cells, *more]
        results = _collected(plan, [cell for cell in cells if cell not in remaining], base=base, start=start)
    return results, cells


def _collected(plan: ComparisonPlan, cells: Sequence[Cell], *, base: Domains, start: Sequence[str]) -> Results:
    """Return the results of cells that are done."""
    policies = {cell.label: config_of_cell(plan, cell).mixture.rule for cell in cells if cell.mixture is None}
    uniform = [label for label, policy in policies.items() if policy is UNIFORM]
    return Results(
        plan=plan,
        base=base,
        domains={cell: result_of(plan, cell) for cell in cells},
        split=split_of(plan),
        weights={cell: last_weights(folder_of(plan, cell)) for cell in cells},
        uniform=uniform[0] if plan.static else None,
        fixed=tuple(label for label, policy in policies.items() if not policy.moves),
        predicted=predicted_means(plan, cells, start=start),
    )


def last_weights(run_dir: Path) -> dict[str, float]:
    """Return a run's last weights by domain; a domain without one, in a run that never decided, is omitted."""
    _, weights = requested_weights(read_series(run_dir))
    return {name: values[-1] for name, values in weights.items() if values[-1] is not None}


def num_jobs_of(asked: int | None, *, gpus: tuple[str, ...], per_gpu: int | None = None) -> int:
    """Return how many runs to do at a time: as requested, else one per GPU, else one per CPU core.

    Raises:
        ValueError: If the requested number is below 1, given twice, or for GPUs that are not there.
    """
    for option, value in (("--jobs", asked), ("--jobs-per-gpu", per_gpu)):
        if value is not None and value < 1:
            raise ValueError(f"{option}={value}: expected 1 or more")
    if per_gpu is None:
        return asked or len(gpus) or len(os.sched_getaffinity(0))
    if asked is not None:
        raise ValueError("--jobs and --jobs-per-gpu: give one of them")
    if not gpus:
        raise ValueError(f"--jobs-per-gpu={per_gpu}: this machine has no GPU; give --jobs, the runs at a time")
    return per_gpu * len(gpus)
