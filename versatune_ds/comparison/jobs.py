"""Train and evaluate every run of a comparison, several at a time, and resume where an earlier call stopped.

A run is done when its evaluation is in its folder and the settings it was made with are kept beside it. Everything else
is tried again, and results made with other settings are refused.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from versatune_ds.comparison.plan import Cell, ComparisonPlan, config_of_cell, overrides_of, texts
from versatune_ds.comparison.starting_point import digest_of_start
from versatune_ds.config import load_config
from versatune_ds.data.sources.domain_files import has_test_rows
from versatune_ds.evaluation.command import EvaluateOptions, evaluate
from versatune_ds.launch.process_pool import Job, run_jobs
from versatune_ds.run_folder.atomic import write_json
from versatune_ds.run_folder.names import EVALUATION_FILE
from versatune_ds.training.worker import run_worker

logger = logging.getLogger(__name__)

_BASE_FILE = "base_evaluation.json"


def num_jobs_of(asked: int | None, *, gpus: tuple[str, ...]) -> int:
    """Return how many runs to do at a time: as requested, else one per GPU, else one per CPU core.

    Raises:
        ValueError: If the requested number is below 1.
    """
    if asked is not None and asked < 1:
        raise ValueError(f"--jobs={asked}: expected 1 or more")
    return asked or len(gpus) or len(os.sched_getaffinity(0))


def run_cells(
    plan: ComparisonPlan,
    cells: Sequence[Cell],
    *,
    start: Sequence[str],
    num_jobs: int,
    gpus: tuple[str, ...],
    describe: Callable[[Cell], str],
) -> None:
    """Run every cell that has no result yet.

    Args:
        plan: The comparison.
        cells: Its runs.
        start: `key=value` texts of what they start from.
        num_jobs: Runs at a time.
        gpus: Names of this machine's GPUs.
        describe: Returns what is logged of a run that is done.

    Raises:
        RuntimeError: If runs fail; the others are finished first, and each failed one is named with its log.
    """
    waiting = {cell.run_name: cell for cell in cells if not _has_result(plan, cell, start)}
    logger.info("%d runs, %d of them done", len(cells), len(cells) - len(waiting))
    began, done, failed = time.monotonic(), [], []

    def log_done(job: Job, exit_code: int) -> None:
        """Log how a run ended and how long the others will take."""
        done.append(job)
        if exit_code:
            failed.append(job)
        outcome = "FAILED" if exit_code else describe(waiting[job.name])
        left = (time.monotonic() - began) / len(done) * (len(waiting) - len(done))
        logger.info("%s %s  %d/%d, about %.0f s left", job.name, outcome, len(done), len(waiting), left)

    jobs = [
        Job(name=name, work=partial(_train_and_evaluate, plan, cell, start), log=_log_of(plan, cell))
        for name, cell in waiting.items()
    ]
    run_jobs(jobs, num_at_a_time=num_jobs, gpus=gpus, when_done=log_done)
    if failed:
        logs = ", ".join(str(job.log) for job in failed)
        raise RuntimeError(f"{len(failed)} of {len(cells)} runs failed: see {logs}; the same command tries them again")


def evaluate_base(plan: ComparisonPlan, start: Sequence[str], *, gpus: tuple[str, ...]) -> dict[str, Any]:
    """Return the base model's evaluation, made once, on the same rows as every run's.

    Raises:
        RuntimeError: If it fails; its log is named.
    """
    path, log = plan.folder / _BASE_FILE, plan.folder / "logs" / "base.log"
    settings_path = path.with_name("base_comparison.json")
    config = load_config(plan.recipe, [*start, *texts(plan.set)]).model_dump(mode="json")
    settings = {"data": config["data"], "model": config["model"], **_evaluation_settings(plan)}
    settings["start"] = digest_of_start(plan)
    if not path.is_file() or _read(settings_path) != settings:
        job, codes = Job(name="base", work=partial(_evaluate_base, plan, start, path), log=log), []
        run_jobs([job], num_at_a_time=1, gpus=gpus, when_done=lambda job, exit_code: codes.append(exit_code))
        if any(codes):
            raise RuntimeError(f"the base model's evaluation failed: see {log}; the same command tries it again")
        write_json(settings_path, settings)
    return _read(path)["domains"]


def _evaluate_base(plan: ComparisonPlan, start: Sequence[str], path: Path) -> int:
    """Evaluate the base model; the work of one process."""
    overrides = [*start, *texts(plan.set)]
    options = replace(evaluation_options(plan), recipe=plan.recipe, overrides=overrides, output=path)
    evaluate(plan.start_folder / "base_model", options)
    return 0


def result_of(plan: ComparisonPlan, cell: Cell) -> dict[str, Any]:
    """Return a run's evaluation by domain."""
    return _read(folder_of(plan, cell) / EVALUATION_FILE)["domains"]


def evaluation_options(plan: ComparisonPlan) -> EvaluateOptions:
    """Return how every model of the comparison is evaluated: on test rows where there are any."""
    return EvaluateOptions(has_base=False, split=split_of(plan), num_exact=plan.exact, choice_paths=plan.choices)


def split_of(plan: ComparisonPlan) -> str:
    """Return `test`, or `valid` where the data have no test rows."""
    return "test" if has_test_rows(load_config(plan.recipe, texts(plan.set)).data) else "valid"


def folder_of(plan: ComparisonPlan, cell: Cell) -> Path:
    """Return the run's folder."""
    return plan.folder / "runs" / cell.run_name


def _log_of(plan: ComparisonPlan, cell: Cell) -> Path:
    """Return the run's log file; it is beside the run's folder, which contains only files of the run itself."""
    return plan.folder / "logs" / f"{cell.run_name}.log"


def _has_result(plan: ComparisonPlan, cell: Cell, start: Sequence[str]) -> bool:
    """Return whether a run was evaluated, with the keys and the starting point it has now.

    Raises:
        ValueError: If it was made, or begun, with others: results of two settings must not be in one table.
    """
    folder, kept = folder_of(plan, cell), _read(_settings_path(plan, cell))
    if folder.is_dir() and kept not in (None, _settings_of(plan, cell, start)):
        raise ValueError(
            f"{folder}: made with other settings or from another base model; remove it, or give the comparison another "
            "name"
        )
    return kept is not None and (folder / EVALUATION_FILE).is_file()


def _settings_path(plan: ComparisonPlan, cell: Cell) -> Path:
    """Return the file of a run's settings, which is beside its folder as its log is."""
    return plan.folder / "settings" / f"{cell.run_name}.json"


def _settings_of(plan: ComparisonPlan, cell: Cell, start: Sequence[str]) -> dict[str, Any]:
    """Return everything a run's result depends on besides the data."""
    config = config_of_cell(plan, cell, start=start).model_dump(mode="json")
    return {"config": config, "start": digest_of_start(plan), **_evaluation_settings(plan)}


def _evaluation_settings(plan: ComparisonPlan) -> dict[str, Any]:
    """Return how models are evaluated, as it is stored."""
    return {"split": split_of(plan), "exact": plan.exact, "choices": [str(path) for path in plan.choices]}


def _read(path: Path) -> Any:
    """Return the content of a JSON file, None for a missing one."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _train_and_evaluate(plan: ComparisonPlan, cell: Cell, start: Sequence[str]) -> int:
    """Train or resume one run, then evaluate it; the work of one process. Return its exit code."""
    settings = _settings_path(plan, cell)
    settings.parent.mkdir(parents=True, exist_ok=True)
    write_json(settings, _settings_of(plan, cell, start))
    overrides = [*start, *overrides_of(plan, cell)]
    code = run_worker(plan.recipe, overrides, is_fresh=False, is_quiet=False, when_complete=lambda folder: None)
    if code == 0:
        options = replace(evaluation_options(plan), output=folder_of(plan, cell) / EVALUATION_FILE)
        evaluate(folder_of(plan, cell), options)
    return code
