"""Run a comparison from its file to its page.

The same command resumes where it was stopped; once all results are there it only writes the page again.

Several runs are trained and evaluated at a time. A run is done when its evaluation is in its folder and the settings it
was made with are kept beside it. Everything else is tried again, and results made with other settings are refused.
"""

from __future__ import annotations

import logging
import os
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from versatune_ds.comparison.base_model import base_model_folder
from versatune_ds.comparison.cells import Cell, cells_of, config_of_cell, overrides_of
from versatune_ds.comparison.comparison_file import read_plan
from versatune_ds.comparison.complete_block import complete_block, missing_sentence
from versatune_ds.comparison.headroom import follow_up_cells
from versatune_ds.comparison.kept_results import (
    BASE_FILE,
    BASE_SETTINGS_FILE,
    are_same,
    base_settings,
    folder_of,
    has_result,
    result_of,
    settings_of,
    settings_path,
    split_of,
)
from versatune_ds.comparison.order import in_order
from versatune_ds.comparison.outcome import Domains, outcome
from versatune_ds.comparison.override_texts import texts
from versatune_ds.comparison.pack import read_pack, take_up_results, take_up_start, write_pack
from versatune_ds.comparison.plan import ComparisonPlan
from versatune_ds.comparison.predictions import predicted_means
from versatune_ds.comparison.results_page.page import write_page
from versatune_ds.comparison.results_page.results import Results
from versatune_ds.comparison.starting_point import make_starting_point
from versatune_ds.distributed import World
from versatune_ds.evaluation.command import EvaluateOptions, evaluate
from versatune_ds.launch.jobs import Job, run_jobs
from versatune_ds.launch.process_pool import gpu_names
from versatune_ds.launch.time_budget import OutOfTimeError, TimeBudget
from versatune_ds.mixture.policies.fixed import UNIFORM
from versatune_ds.report.series import read_series, requested_weights
from versatune_ds.run_folder.atomic import read_json, write_json
from versatune_ds.run_folder.file_lock import locked
from versatune_ds.run_folder.folder import describe_environment
from versatune_ds.run_folder.names import EVALUATION_FILE
from versatune_ds.training.worker import run_worker

logger = logging.getLogger(__name__)

_SECONDS_FILE = "run_seconds.json"
"""How long the longest run took, the first guess of a later call with a time budget."""
_MODULES = (
    "versatune_ds.comparison.compare",
    "versatune_ds.training.worker",
    "versatune_ds.evaluation.command",
)
"""What a process that runs have been forked from has imported."""


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
    """Such a file of another machine, whose results are taken up first."""
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
    budget.guess((read_json(plan.folder / _SECONDS_FILE) or {}).get("longest"))
    command = shlex.join(["versatune", "compare", str(path), *overrides])
    taken = None if options.continued is None else read_pack(options.continued)
    if options.pack is not None and not options.pack.parent.is_dir():
        raise ValueError(f"--pack: {options.pack}: expected a file in an existing folder")
    with locked(plan.folder / "lock", what="this comparison's folder"):
        results, cells, what = None, list(cells_of(plan)), "its runs"
        try:
            if taken is not None:
                take_up_start(taken, plan)
            start = make_starting_point(plan, num_processes=min(num_jobs, len(gpus) or num_jobs), budget=budget)
            if taken is not None:
                take_up_results(taken, plan, start)
            results, cells = _results(plan, start=start, num_jobs=num_jobs, gpus=gpus, budget=budget)
        except OutOfTimeError as error:
            what = str(error)
        finally:  # what is done is carried on from a comparison that failed too
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


def run_cells(
    plan: ComparisonPlan,
    cells: Sequence[Cell],
    *,
    base: Domains,
    start: Sequence[str],
    num_jobs: int,
    gpus: tuple[str, ...],
    budget: TimeBudget,
) -> list[Cell]:
    """Run every cell that has no result yet; one that is done is logged against the base model's evaluation.

    Returns:
        The cells for which there was no time.

    Raises:
        RuntimeError: If runs fail; the others are finished first, and each failed one is named with its log.
    """
    waiting = {cell.run_name: cell for cell in cells if not has_result(plan, cell, start)}
    logger.info("%d runs, %d of them done", len(cells), len(cells) - len(waiting))
    began, done, failed = time.monotonic(), [], []

    def log_done(job: Job, exit_code: int) -> None:
        """Log how a run ended and how long the others will take."""
        done.append(job)
        if exit_code:
            failed.append(job)
            result = "FAILED"
        else:
            cell = waiting[job.name]
            result = outcome(result_of(plan, cell), base, target=cell.target).sentence()
            write_json(plan.folder / _SECONDS_FILE, {"longest": round(budget.longest_seconds or 0.0, 1)})
        left = (time.monotonic() - began) / len(done) * (len(waiting) - len(done))
        logger.info("%s %s  %d/%d, about %.0f s left", job.name, result, len(done), len(waiting), left)

    logs = plan.folder / "logs"  # beside the runs' folders, which contain only files of the runs themselves
    jobs = [
        Job(
            name=name,
            work=partial(_train_and_evaluate, plan, cell, start),
            log=logs / f"{name}.log",
            modules=_MODULES,
        )
        for name, cell in waiting.items()
    ]
    stopped = run_jobs(jobs, num_at_a_time=num_jobs, gpus=gpus, when_done=log_done, budget=budget)
    if failed:
        places = ", ".join(str(job.log) for job in failed)
        raise RuntimeError(
            f"{len(failed)} of {len(cells)} runs failed: see {places}; the same command tries them again"
        )
    return [waiting[job.name] for job in stopped]


def evaluate_base(
    plan: ComparisonPlan, start: Sequence[str], *, gpus: tuple[str, ...], budget: TimeBudget
) -> dict[str, Any]:
    """Return the base model's evaluation, made once, on the same rows as every run's.

    Raises:
        RuntimeError: If it fails; its log is named.
        OutOfTimeError: If there was no time for it.
    """
    path, log = plan.folder / BASE_FILE, plan.folder / "logs" / "base.log"
    settings_path, settings = plan.folder / BASE_SETTINGS_FILE, base_settings(plan, start)
    if not path.is_file() or not are_same(read_json(settings_path) or {}, settings):
        job, codes = Job(name="base", work=partial(_evaluate_base, plan, start, path), log=log, modules=_MODULES), []
        time_left = TimeBudget(budget.seconds, began=budget.began)  # how long a run takes says nothing about it
        stopped = run_jobs(
            [job], num_at_a_time=1, gpus=gpus, when_done=lambda job, code: codes.append(code), budget=time_left
        )
        if stopped:
            raise OutOfTimeError("the base model's evaluation")
        if any(codes):
            raise RuntimeError(f"the base model's evaluation failed: see {log}; the same command tries it again")
        write_json(settings_path, settings)
        budget.guess(time_left.longest_seconds)
    return read_json(path)["domains"]


def _evaluate_base(plan: ComparisonPlan, start: Sequence[str], path: Path) -> int:
    """Evaluate the base model; the work of one process."""
    overrides = [*start, *texts(plan.set)]
    options = replace(evaluation_options(plan), recipe=plan.recipe, overrides=overrides, output=path)
    evaluate(base_model_folder(plan), options)
    return 0


def evaluation_options(plan: ComparisonPlan) -> EvaluateOptions:
    """Return how every model of the comparison is evaluated: on test rows where there are any."""
    return EvaluateOptions(has_base=False, split=split_of(plan), num_exact=plan.exact, choice_paths=plan.choices)


def _train_and_evaluate(plan: ComparisonPlan, cell: Cell, start: Sequence[str]) -> int:
    """Train or resume one run, then evaluate it; the work of one process. Return its exit code."""
    settings = settings_path(plan, cell)
    settings.parent.mkdir(parents=True, exist_ok=True)
    write_json(settings, settings_of(plan, cell, start))
    overrides = [*start, *overrides_of(plan, cell)]
    code = run_worker(plan.recipe, overrides, is_fresh=False, is_quiet=False, when_complete=lambda folder: None)
    if code == 0:
        options = replace(evaluation_options(plan), output=folder_of(plan, cell) / EVALUATION_FILE)
        evaluate(folder_of(plan, cell), options)
    return code
