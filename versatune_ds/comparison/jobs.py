"""Train and evaluate every run of a comparison, several at a time, going on where an earlier call stopped.

The one idea: a run is done when its evaluation lies in its folder beside the settings it was made with; everything else
is tried again, and results of other settings are refused.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from versatune_ds.comparison.plan import Cell, ComparisonPlan, config_of_cell, overrides_of, texts
from versatune_ds.comparison.processes import places, start_process
from versatune_ds.comparison.starting_point import digest_of_start
from versatune_ds.config import load_config
from versatune_ds.data.sources.domain_files import has_test_rows
from versatune_ds.evaluation.command import EvaluateOptions, evaluate
from versatune_ds.run_folder.atomic import write_json
from versatune_ds.run_folder.names import EVALUATION_FILE
from versatune_ds.training.worker import run_worker

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.05
_BASE_FILE = "base_evaluation.json"


def run_cells(
    plan: ComparisonPlan,
    cells: Sequence[Cell],
    *,
    start: Sequence[str],
    num_jobs: int,
    gpus: tuple[str, ...],
    say: Callable[[Cell], str],
) -> None:
    """Run every cell that has no result yet.

    Args:
        plan: The comparison.
        cells: Its runs.
        start: `key=value` texts of what they start from.
        num_jobs: Runs under way at a time.
        gpus: Names of this machine's GPUs.
        say: Returns what is logged of a run that is done.

    Raises:
        RuntimeError: If runs fail; the others are finished first, and each failed one is named with its log.
    """
    waiting = [cell for cell in cells if not _has_result(plan, cell, start)]
    logger.info("%d runs, %d of them done", len(cells), len(cells) - len(waiting))
    num_waiting, began = len(waiting), time.monotonic()
    running: dict[BaseProcess, tuple[Cell, str | None]] = {}
    free, failed = places(num_jobs, gpus=gpus), []
    while waiting or running:
        while waiting and free:
            cell, gpu = waiting.pop(0), free.pop(0)
            work = partial(_train_and_evaluate, plan, cell, start)
            running[start_process(work, log=_log_of(plan, cell), gpu=gpu)] = (cell, gpu)
        for process in [process for process in running if not process.is_alive()]:
            cell, gpu = running.pop(process)
            free.append(gpu)
            process.join()
            failed += [cell] * (process.exitcode != 0)
            num_done = num_waiting - len(waiting) - len(running)
            left = (time.monotonic() - began) / num_done * (num_waiting - num_done)
            outcome = say(cell) if process.exitcode == 0 else "FAILED"
            logger.info("%s %s  %d/%d, about %.0f s left", cell.run_name, outcome, num_done, num_waiting, left)
        time.sleep(_POLL_SECONDS)
    if failed:
        logs = ", ".join(str(_log_of(plan, cell)) for cell in failed)
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
        process = start_process(partial(_evaluate_base, plan, start, path), log=log, gpu=places(1, gpus=gpus)[0])
        process.join()
        if process.exitcode:
            raise RuntimeError(f"the base model's evaluation failed: see {log}; the same command tries it again")
        write_json(settings_path, settings)
    return _read(path)["domains"]


def _evaluate_base(plan: ComparisonPlan, start: Sequence[str], path: Path) -> int:
    """Be the process that evaluates the base model."""
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
    """Return the run's log, which lies beside its folder: a run's folder holds nothing but the run's."""
    return plan.folder / "logs" / f"{cell.run_name}.log"


def _has_result(plan: ComparisonPlan, cell: Cell, start: Sequence[str]) -> bool:
    """Return whether a run was evaluated, with the keys and the starting point it has now.

    Raises:
        ValueError: If it was made, or begun, with others: results of two settings must not meet in one table.
    """
    folder, kept = folder_of(plan, cell), _read(_settings_path(plan, cell))
    if folder.is_dir() and kept not in (None, _settings_of(plan, cell, start)):
        raise ValueError(
            f"{folder}: made with other settings or from another base model; remove it, or give the comparison another "
            "name"
        )
    return kept is not None and (folder / EVALUATION_FILE).is_file()


def _settings_path(plan: ComparisonPlan, cell: Cell) -> Path:
    """Return where a run's settings are kept, beside its folder as its log is."""
    return plan.folder / "settings" / f"{cell.run_name}.json"


def _settings_of(plan: ComparisonPlan, cell: Cell, start: Sequence[str]) -> dict[str, Any]:
    """Return everything a run's result depends on besides the data it names."""
    config = config_of_cell(plan, cell, start=start).model_dump(mode="json")
    return {"config": config, "start": digest_of_start(plan), **_evaluation_settings(plan)}


def _evaluation_settings(plan: ComparisonPlan) -> dict[str, Any]:
    """Return how models are evaluated, as it is kept."""
    return {"split": split_of(plan), "exact": plan.exact, "choices": [str(path) for path in plan.choices]}


def _read(path: Path) -> Any:
    """Return what a JSON file holds, None for a missing one."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _train_and_evaluate(plan: ComparisonPlan, cell: Cell, start: Sequence[str]) -> int:
    """Be the process of one run: train, or go on training, then evaluate; return its exit code."""
    settings = _settings_path(plan, cell)
    settings.parent.mkdir(parents=True, exist_ok=True)
    write_json(settings, _settings_of(plan, cell, start))
    overrides = [*start, *overrides_of(plan, cell)]
    code = run_worker(plan.recipe, overrides, is_fresh=False, is_quiet=False, when_complete=lambda folder: None)
    if code == 0:
        options = replace(evaluation_options(plan), output=folder_of(plan, cell) / EVALUATION_FILE)
        evaluate(folder_of(plan, cell), options)
    return code
