"""Run tasks of lm-evaluation-harness on a model: its built-in ones, or a user's own YAML files.

The one idea: the harness asks and scores as it does everywhere, so its numbers compare with published ones (prompts are
the task's own text, without a chat template). What is added here is the change since another model with its error,
paired question by question.

The package lm_eval is an extra; it is imported where a task was asked for, and nowhere else.
"""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from versatune_ds.evaluation.result import number

_NO_FILTER = "none"
"""What the harness calls an answer that is scored as it was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HarnessTasks:
    """Hold the tasks that were asked for, all known and loadable.

    Attributes:
        names: Tasks, groups and tags of the harness, or YAML files.
        manager: The harness's index of tasks.
        limit: Examples of each task at most; None for all.
    """

    names: tuple[str, ...]
    manager: Any
    limit: int | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TaskScore:
    """Hold one metric of one task.

    Attributes:
        value: As the harness aggregates it.
        standard_error: NaN where the harness gives none.
        num_examples: Of the task.
        value_E: Each example's own value, in the task's order, where `value` is their mean; else None.
    """

    value: float
    standard_error: float
    num_examples: int
    value_E: np.ndarray | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers for JSON."""
        return {
            "value": number(self.value),
            "standard_error": number(self.standard_error),
            "num_examples": self.num_examples,
        }


TaskScores = dict[str, dict[str, TaskScore]]
"""{task: {metric: score}}; an answer that was filtered before it was scored stands in the name, `metric,filter`."""


def find_tasks(names: Sequence[str], *, include: Path | None = None, limit: int | None = None) -> HarnessTasks:
    """Find tasks and load them once, so that a name or a data set that is not there is known before a model is loaded.

    Args:
        names: Tasks, groups or tags of the harness, patterns of them (`mmlu_*`), or YAML files.
        include: Folder with YAML files of more tasks.
        limit: Examples of each task at most; None for all.

    Raises:
        ValueError: If lm_eval is not installed, or a task is not known or cannot be loaded.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"--harness-limit={limit}: expected 1 example or more")
    if include is not None and not include.is_dir():
        raise ValueError(
            f"--harness-include: {include}: no such folder; give one with tasks' YAML files, or a file in --harness"
        )
    if not names or not all(names):
        raise ValueError("--harness: a task without a name; expected TASK[,TASK], e.g. hellaswag,arc_easy")
    manager = _manager_that_knows(names, include=include)
    found = tuple(dict.fromkeys(task for name in names for task in _matching(name, manager)))
    for name in found:
        try:
            manager.load([name])
        except Exception as error:  # a task is a file of its author's, with code and data: it fails in any way
            reason = (str(error).splitlines() or [""])[0]
            raise ValueError(f"--harness: {name} cannot be loaded: {type(error).__name__}: {reason}") from error
    return HarnessTasks(names=found, manager=manager, limit=limit)


def _manager_that_knows(names: Sequence[str], *, include: Path | None) -> Any:
    """Return the index of the user's tasks where it has all that is asked, else of the thousands built in as well."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise ValueError("--harness: the package lm_eval is missing; pip install 'versatune_ds[harness]'") from None
    # Reading the built-in ones takes seconds. Single tasks only: a user's group may hold tasks that are built in.
    own = TaskManager(include_path=include, include_defaults=False)
    if all(_is_file(name) or name in own.all_subtasks for name in names):
        return own
    return TaskManager(include_path=include)


def _matching(name: str, manager: Any) -> list[str]:
    """Return the tasks that a name or pattern stands for."""
    found = [name] if _is_file(name) else manager.match_tasks([name])
    if not found:
        close = difflib.get_close_matches(name, manager.all_tasks, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "name its YAML file, or its folder: --harness-include FOLDER"
        raise ValueError(f"--harness: no task {name!r}; {hint}")
    return found


def _is_file(name: str) -> bool:
    """Return whether a task is named by its file."""
    return Path(name).suffix in (".yaml", ".yml") and Path(name).is_file()


def run_tasks(causal_lm: Any, tokenizer: Any, tasks: HarnessTasks, *, batch_size: int) -> TaskScores:
    """Return what a model scores in every task, and in every group that adds its tasks up.

    Args:
        causal_lm: A transformers model, on its device.
        tokenizer: The model's.
        tasks: What `find_tasks` returned.
        batch_size: Sequences that go through the model at a time.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    log = logging.getLogger("lm_eval.models.huggingface")
    log.addFilter(_is_no_remark_on_loaded_models)
    try:
        found = simple_evaluate(
            model=HFLM(pretrained=causal_lm, tokenizer=tokenizer, batch_size=batch_size),
            tasks=list(tasks.names),
            task_manager=tasks.manager,
            limit=tasks.limit,
        )
    finally:
        log.removeFilter(_is_no_remark_on_loaded_models)
    return {task: scores for task in found["results"] if (scores := _scores_of(task, found))}


def _is_no_remark_on_loaded_models(record: logging.LogRecord) -> bool:
    """Return whether a record is none of the warning that every model handed over loaded calls forth."""
    return not record.getMessage().startswith("`pretrained` model kwarg is not of type `str`")


def _scores_of(task: str, found: Mapping[str, Any]) -> dict[str, TaskScore]:
    """Return a task's or group's metrics; the harness names them `metric,filter` and `metric_stderr,filter`."""
    numbers, scores = found["results"][task], {}
    samples = found["samples"].get(task, [])
    for key, value in numbers.items():
        metric, _, filtered = key.partition(",")
        if not filtered or metric.endswith("_stderr"):
            continue
        scores[metric if filtered == _NO_FILTER else key] = TaskScore(
            value=float(value),
            standard_error=_number_or_nan(numbers.get(f"{metric}_stderr,{filtered}")),
            num_examples=int(numbers["sample_len"]),
            value_E=_values_of(samples, metric=metric, filtered=filtered, mean=float(value)),
        )
    return scores


def _number_or_nan(value: Any) -> float:
    """Return a number; the harness writes "N/A" where it has none."""
    return float(value) if isinstance(value, int | float) else math.nan


def _values_of(samples: Sequence[Mapping[str, Any]], *, metric: str, filtered: str, mean: float) -> np.ndarray | None:
    """Return every example's value, where the metric is their plain mean (a perplexity or an F1 is not)."""
    values = [sample.get(metric) for sample in samples if sample["filter"] == filtered]
    if not values or not all(isinstance(value, int | float | np.number) for value in values):
        return None
    value_E = np.array(values, dtype=np.float64)
    return value_E if np.isclose(value_E.mean(), mean, rtol=1e-9, atol=1e-12) else None


def scores_to_dict(scores: TaskScores) -> dict[str, dict[str, Any]]:
    """Return {task: {metric: numbers}} for JSON."""
    return {task: {metric: score.to_dict() for metric, score in metrics.items()} for task, metrics in scores.items()}


def score_changes(after: TaskScores, before: TaskScores) -> dict[str, dict[str, Any]]:
    """Return {task: {metric: what changed from one model to another}}, with the error of a mean of paired differences.

    The error is None where the metric is no mean over examples, or of a group.
    """
    return {
        task: {metric: _change(score, before[task][metric]) for metric, score in metrics.items()}
        for task, metrics in after.items()
    }


def _change(after: TaskScore, before: TaskScore) -> dict[str, float | None]:
    """Return how much a metric changed, and the standard error."""
    error = math.nan
    if after.value_E is not None and before.value_E is not None and len(after.value_E) > 1:
        error = float(np.std(after.value_E - before.value_E, ddof=1)) / math.sqrt(len(after.value_E))
    return {"change": number(after.value - before.value), "change_standard_error": number(error)}
