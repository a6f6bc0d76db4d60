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
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from versatune_ds.comparison.base_model import base_model_folder
from versatune_ds.comparison.headroom import follow_up_cells
from versatune_ds.comparison.outcome import Domains, outcome
from versatune_ds.comparison.page import write_page
from versatune_ds.comparison.plan import Cell, ComparisonPlan, cells_of, config_of_cell, overrides_of, read_plan, texts
from versatune_ds.comparison.predictions import predicted_means
from versatune_ds.comparison.starting_point import digest_of_start, make_starting_point
from versatune_ds.comparison.table import Results
from versatune_ds.config import load_config
from versatune_ds.data.sources.domain_files import has_test_rows
from versatune_ds.distributed import World
from versatune_ds.evaluation.command import EvaluateOptions, evaluate
from versatune_ds.launch.process_pool import Job, gpu_names, run_jobs
from versatune_ds.mixture.policies.fixed import UNIFORM
from versatune_ds.report.series import read_series, requested_weights
from versatune_ds.run_folder.atomic import read_json, write_json
from versatune_ds.run_folder.file_lock import locked
from versatune_ds.run_folder.folder import describe_environment
from versatune_ds.run_folder.names import EVALUATION_FILE
from versatune_ds.training.worker import run_worker

logger = logging.getLogger(__name__)

_BASE_FILE = "base_evaluation.json"
_STAGES = ("detect", "reference")
"""Sections of a recipe that no run reads, only the stages of the starting point."""


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
    with locked(plan.folder / "lock", what="this comparison's folder"):
        start = make_starting_point(plan, num_processes=min(num_jobs, len(gpus) or num_jobs))
        results = _results(plan, start=start, num_jobs=num_jobs, gpus=gpus)
        environment = describe_environment(World(rank=0, world_size=1, local_rank=0, launcher="single"))
        command = shlex.join(["versatune", "compare", str(path), *overrides])
        versions = {**environment["versions"], "commit": environment["commit"]}
        return write_page(results, command=command, versions=versions)


def _results(plan: ComparisonPlan, *, start: Sequence[str], num_jobs: int, gpus: tuple[str, ...]) -> Results:
    """Evaluate the base model, run every cell, and collect the results."""
    base, cells = evaluate_base(plan, start, gpus=gpus), list(cells_of(plan))
    run_cells(plan, cells, base=base, start=start, num_jobs=num_jobs, gpus=gpus)
    results = _collected(plan, cells, base=base, start=start)
    if more := follow_up_cells(results):
        logger.info("%s is the best fixed mixture drawn; it is trained with the other seeds too", more[0].label)
        run_cells(plan, more, base=base, start=start, num_jobs=num_jobs, gpus=gpus)
        results = _collected(plan, [*cells, *more], base=base, start=start)
    return results


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
    base: Domains,
    start: Sequence[str],
    num_jobs: int,
    gpus: tuple[str, ...],
) -> None:
    """Run every cell that has no result yet; one that is done is logged against the base model's evaluation.

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
            result = "FAILED"
        else:
            cell = waiting[job.name]
            result = outcome(result_of(plan, cell), base, target=cell.target).sentence()
        left = (time.monotonic() - began) / len(done) * (len(waiting) - len(done))
        logger.info("%s %s  %d/%d, about %.0f s left", job.name, result, len(done), len(waiting), left)

    logs = plan.folder / "logs"  # beside the runs' folders, which contain only files of the runs themselves
    jobs = [
        Job(name=name, work=partial(_train_and_evaluate, plan, cell, start), log=logs / f"{name}.log")
        for name, cell in waiting.items()
    ]
    run_jobs(jobs, num_at_a_time=num_jobs, gpus=gpus, when_done=log_done)
    if failed:
        places = ", ".join(str(job.log) for job in failed)
        raise RuntimeError(
            f"{len(failed)} of {len(cells)} runs failed: see {places}; the same command tries them again"
        )


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
    if not path.is_file() or read_json(settings_path) != settings:
        job, codes = Job(name="base", work=partial(_evaluate_base, plan, start, path), log=log), []
        run_jobs([job], num_at_a_time=1, gpus=gpus, when_done=lambda job, exit_code: codes.append(exit_code))
        if any(codes):
            raise RuntimeError(f"the base model's evaluation failed: see {log}; the same command tries it again")
        write_json(settings_path, settings)
    return read_json(path)["domains"]


def _evaluate_base(plan: ComparisonPlan, start: Sequence[str], path: Path) -> int:
    """Evaluate the base model; the work of one process."""
    overrides = [*start, *texts(plan.set)]
    options = replace(evaluation_options(plan), recipe=plan.recipe, overrides=overrides, output=path)
    evaluate(base_model_folder(plan), options)
    return 0


def result_of(plan: ComparisonPlan, cell: Cell) -> dict[str, Any]:
    """Return a run's evaluation by domain."""
    return read_json(folder_of(plan, cell) / EVALUATION_FILE)["domains"]


def evaluation_options(plan: ComparisonPlan) -> EvaluateOptions:
    """Return how every model of the comparison is evaluated: on test rows where there are any."""
    return EvaluateOptions(has_base=False, split=split_of(plan), num_exact=plan.exact, choice_paths=plan.choices)


def split_of(plan: ComparisonPlan) -> str:
    """Return `test`, or `valid` where the data have no test rows."""
    return "test" if has_test_rows(load_config(plan.recipe, texts(plan.set)).data) else "valid"


def folder_of(plan: ComparisonPlan, cell: Cell) -> Path:
    """Return the run's folder."""
    return plan.folder / "runs" / cell.run_name


def _has_result(plan: ComparisonPlan, cell: Cell, start: Sequence[str]) -> bool:
    """Return whether a run was evaluated, with the keys and the starting point it has now.

    Raises:
        ValueError: If it was made, or begun, with others: results of two settings must not be in one table.
    """
    folder, kept = folder_of(plan, cell), read_json(_settings_path(plan, cell))
    if folder.is_dir() and kept is not None and _decisive(kept) != _decisive(_settings_of(plan, cell, start)):
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
    return {"config": config, "start": digest_of_start(plan, cell), **_evaluation_settings(plan)}


def _decisive(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings without the keys of the starting point's stages, whose files are in the digest of the start.

    So a result stays valid when a later version adds such a key.
    """
    config = {name: section for name, section in settings["config"].items() if name not in _STAGES}
    return {**settings, "config": config}


def _evaluation_settings(plan: ComparisonPlan) -> dict[str, Any]:
    return {"split": split_of(plan), "exact": plan.exact, "choices": [str(path) for path in plan.choices]}


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
