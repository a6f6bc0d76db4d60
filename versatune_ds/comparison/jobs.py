"""Train and evaluate every run of a comparison, several at a time, going on where an earlier call stopped.

The one idea: everything heavy is imported once, then each run is a forked process of one rank with one thread: on small
models the imports would cost as much as the training.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from versatune_ds.comparison.plan import Cell, ComparisonPlan, config_of_cell, overrides_of
from versatune_ds.log import configure_logging
from versatune_ds.training.evaluation.command import RESULT_FILE, EvaluateOptions, evaluate
from versatune_ds.training.worker import run_worker

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.05
_SETTINGS_FILE = "comparison.json"
_LAUNCHER_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def run_cells(plan: ComparisonPlan, cells: Sequence[Cell], *, start: Sequence[str], num_jobs: int) -> None:
    """Run every cell that has no result yet.

    Args:
        plan: The comparison.
        cells: Its runs.
        start: `key=value` texts of what they start from.
        num_jobs: Runs under way at a time.

    Raises:
        RuntimeError: If runs fail; the others are finished first, and each failed one is named with its log.
    """
    torch.set_num_threads(1)  # a run forked after torch's thread pool was used would wait for it for ever
    waiting = [cell for cell in cells if not _has_result(plan, cell, start)]
    logger.info("%d runs, %d of them done", len(cells), len(cells) - len(waiting))
    num_waiting, began = len(waiting), time.monotonic()
    running: dict[Any, Cell] = {}
    failed: list[Cell] = []
    while waiting or running:
        while waiting and len(running) < num_jobs:
            cell = waiting.pop(0)
            running[_fork(plan, cell, start)] = cell
        for process in [process for process in running if not process.is_alive()]:
            cell = running.pop(process)
            process.join()
            failed += [cell] * (process.exitcode != 0)
            num_done = num_waiting - len(waiting) - len(running)
            left = (time.monotonic() - began) / num_done * (num_waiting - num_done)
            outcome = "done" if process.exitcode == 0 else "FAILED"
            logger.info("%s %s  %d/%d, about %.0f s left", cell.run_name, outcome, num_done, num_waiting, left)
        time.sleep(_POLL_SECONDS)
    if failed:
        logs = ", ".join(str(_log_of(plan, cell)) for cell in failed)
        raise RuntimeError(f"{len(failed)} of {len(cells)} runs failed: see {logs}; the same command tries them again")


def result_of(plan: ComparisonPlan, cell: Cell) -> dict[str, Any]:
    """Return a run's evaluation by domain."""
    return json.loads((_folder_of(plan, cell) / RESULT_FILE).read_text(encoding="utf-8"))["domains"]


def evaluation_options(plan: ComparisonPlan) -> EvaluateOptions:
    """Return how every model of the comparison is evaluated."""
    return EvaluateOptions(has_base=False, num_exact=plan.exact, choice_paths=plan.choices)


def _folder_of(plan: ComparisonPlan, cell: Cell) -> Path:
    """Return the run's folder."""
    return plan.folder / "runs" / cell.run_name


def _log_of(plan: ComparisonPlan, cell: Cell) -> Path:
    """Return the run's log, which lies beside its folder: a run's folder holds nothing but the run's."""
    return plan.folder / "logs" / f"{cell.run_name}.log"


def _has_result(plan: ComparisonPlan, cell: Cell, start: Sequence[str]) -> bool:
    """Return whether a run was evaluated, with the keys it has now.

    Raises:
        ValueError: If it was made with other keys: results of two settings must not meet in one table.
    """
    folder = _folder_of(plan, cell)
    if not (folder / RESULT_FILE).is_file():
        return False
    made = json.loads((folder / _SETTINGS_FILE).read_text(encoding="utf-8"))
    if made != _settings_of(plan, cell, start):
        raise ValueError(f"{folder}: made with other settings; remove it, or give the comparison another name")
    return True


def _settings_of(plan: ComparisonPlan, cell: Cell, start: Sequence[str]) -> dict[str, Any]:
    """Return everything a run's result depends on besides the files it names."""
    config = config_of_cell(plan, cell, start=start).model_dump(mode="json")
    return {"config": config, "exact": plan.exact, "choices": [str(path) for path in plan.choices]}


def _fork(plan: ComparisonPlan, cell: Cell, start: Sequence[str]) -> Any:
    """Start a run in a process of its own."""
    _log_of(plan, cell).parent.mkdir(parents=True, exist_ok=True)
    process = multiprocessing.get_context("fork").Process(target=_train_and_evaluate, args=(plan, cell, start))
    process.start()
    return process


def _train_and_evaluate(plan: ComparisonPlan, cell: Cell, start: Sequence[str]) -> None:
    """Be the process of one run: train, or go on training, then evaluate."""
    _write_to(_log_of(plan, cell))
    for name in _LAUNCHER_NAMES:
        os.environ.pop(name, None)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    code = 1
    try:
        overrides = [*start, *overrides_of(plan, cell)]
        code = run_worker(plan.recipe, overrides, is_fresh=False, is_quiet=False, when_complete=lambda folder: None)
        if code == 0:
            settings = json.dumps(_settings_of(plan, cell, start), indent=1)
            (_folder_of(plan, cell) / _SETTINGS_FILE).write_text(settings + "\n", encoding="utf-8")
            evaluate(_folder_of(plan, cell), evaluation_options(plan))
    except Exception:
        logger.exception("%s failed", cell.run_name)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _write_to(log: Path) -> None:
    """Send all output of this process, of its libraries too, to a file."""
    stream = log.open("ab", buffering=0)
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    # What the process it was forked from put in their place, a test's capture for one, would get the lines otherwise.
    sys.stdout = sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
    configure_logging()
