"""Evaluate the base model, then train and evaluate every run, several at a time, each in a process of its own.

A run is done when its evaluation is in its folder and the settings it was made with are kept beside it. Everything else
is tried again, and results made with other settings are refused.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from versatune_ds.comparison.base_model import base_model_folder
from versatune_ds.comparison.cells import Cell, overrides_of
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
from versatune_ds.comparison.outcome import Domains, outcome
from versatune_ds.comparison.override_texts import texts
from versatune_ds.comparison.plan import ComparisonPlan
from versatune_ds.evaluation.command import EvaluateOptions, evaluate
from versatune_ds.launch.jobs import Job, run_jobs
from versatune_ds.launch.time_budget import OutOfTimeError, TimeBudget
from versatune_ds.run_folder.atomic import read_json, write_json
from versatune_ds.run_folder.names import EVALUATION_FILE
from versatune_ds.training.worker import run_worker

logger = logging.getLogger(__name__)

SECONDS_FILE = "run_seconds.json"
"""How long the longest run took, the first guess of a later call with a time budget."""
_MODULES = (
    "versatune_ds.comparison.cell_runs",
    "versatune_ds.training.worker",
    "versatune_ds.evaluation.command",
)
"""What a process that runs have been forked from has imported."""


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
            write_json(plan.folder / SECONDS_FILE, {"longest": round(budget.longest_seconds or 0.0, 1)})
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
