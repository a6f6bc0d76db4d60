"""Run tasks of lm-evaluation-harness on a model: built-in ones, or a user's own YAML files.

The harness builds prompts and scores as usual, without a chat template, so its numbers compare with published ones.
This module adds the change against another model, with its error, paired question by question.

The package lm_eval is an extra; it is imported only when a task is requested.
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
from versatune_ds.model.attention import dense_attention

_NO_FILTER = "none"
"""The harness's name for scoring an answer unchanged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HarnessTasks:
    """The tasks to run, all known and loadable.

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
    """One metric of one task.

    Attributes:
        value: As the harness aggregates it.
        standard_error: NaN where the harness has none.
        num_examples: Of the task.
        value_E: The value of each example, in the task's order, if `value` is their mean; else None.
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
"""{task: {metric: score}}; a metric of filtered answers is named `metric,filter`."""


def find_tasks(names: Sequence[str], *, include: Path | None = None, limit: int | None = None) -> HarnessTasks:
    """Find tasks and load them once, so that a missing task or data set is an error before a model is loaded.

    Args:
        names: Tasks, groups or tags of the harness, patterns of them (`mmlu_*`), or YAML files.
        include: Folder with YAML files of more tasks.
        limit: Examples of each task at most; None for all.

    Raises:
        ValueError: If lm_eval is not installed, or a task is unknown or cannot be loaded.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"--harness-limit={limit}: expected 1 example or more")
    if include is not None and not include.is_dir():
        raise ValueError(
            f"--harness-include: {include}: no such folder; give one with YAML files of tasks, or a file in --harness"
        )
    if not names or not all(names):
        raise ValueError("--harness: an empty task name; expected TASK[,TASK], e.g. hellaswag,arc_easy")
    manager = _task_manager(names, include=include)
    found = tuple(dict.fromkeys(task for name in names for task in _matching(name, manager)))
    for name in found:
        try:
            manager.load([name])
        except Exception as error:  # a task may run its author's code, which can raise anything
            reason = (str(error).splitlines() or [""])[0]
            raise ValueError(f"--harness: {name} cannot be loaded: {type(error).__name__}: {reason}") from error
    return HarnessTasks(names=found, manager=manager, limit=limit)


def _task_manager(names: Sequence[str], *, include: Path | None) -> Any:
    """Return an index of the user's tasks if it has all names, else one with the built-in tasks too."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise ValueError("--harness: the package lm_eval is missing; pip install 'versatune_ds[harness]'") from None
    # Indexing the built-in ones takes seconds. Only single tasks count: a user's group may contain built-in tasks.
    own = TaskManager(include_path=include, include_defaults=False)
    if all(_is_file(name) or name in own.all_subtasks for name in names):
        return own
    return TaskManager(include_path=include)


def _matching(name: str, manager: Any) -> list[str]:
    """Return the tasks that match a name or pattern."""
    found = [name] if _is_file(name) else manager.match_tasks([name])
    if not found:
        close = difflib.get_close_matches(name, manager.all_tasks, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "give its YAML file, or its folder: --harness-include FOLDER"
        raise ValueError(f"--harness: no task {name!r}; {hint}")
    return found


def _is_file(name: str) -> bool:
    """Return whether a task is given as a YAML file."""
    return Path(name).suffix in (".yaml", ".yml") and Path(name).is_file()


def run_tasks(causal_lm: Any, tokenizer: Any, tasks: HarnessTasks, *, batch_size: int) -> TaskScores:
    """Return a model's scores in every task, and in every group that aggregates tasks.

    Args:
        causal_lm: A transformers model, on its device.
        tokenizer: The model's.
        tasks: What `find_tasks` returned.
        batch_size: Sequences per forward pass.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    log = logging.getLogger("lm_eval.models.huggingface")
    log.addFilter(_is_not_model_warning)
    try:
        with dense_attention(causal_lm):
            found = simple_evaluate(
                model=HFLM(pretrained=causal_lm, tokenizer=tokenizer, batch_size=batch_size),
                tasks=list(tasks.names),
                task_manager=tasks.manager,
                limit=tasks.limit,
            )
    finally:
        log.removeFilter(_is_not_model_warning)
    return {task: scores for task in found["results"] if (scores := _scores_of(task, found))}


def _is_not_model_warning(record: logging.LogRecord) -> bool:
    """Filter out the harness's warning about models passed as objects, which only its wording identifies."""
    return not record.getMessage().startswith("`pretrained` model kwarg is not of type `str`")


def _scores_of(task: str, found: Mapping[str, Any]) -> dict[str, TaskScore]:
    """Return a task's or group's metrics; the harness's keys are `metric,filter` and `metric_stderr,filter`."""
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
    """Return every example's value if the metric is their mean, which a perplexity or an F1 is not; else None."""
    values = [sample.get(metric) for sample in samples if sample["filter"] == filtered]
    if not values or not all(isinstance(value, int | float | np.number) for value in values):
        return None
    value_E = np.array(values, dtype=np.float64)
    return value_E if np.isclose(value_E.mean(), mean, rtol=1e-9, atol=1e-12) else None


def scores_to_dict(scores: TaskScores) -> dict[str, dict[str, Any]]:
    """Return {task: {metric: numbers}} for JSON."""
    return {task: {metric: score.to_dict() for metric, score in metrics.items()} for task, metrics in scores.items()}


def score_changes(after: TaskScores, before: TaskScores) -> dict[str, dict[str, Any]]:
    """Return {task: {metric: change between two models}}, with the standard error of the mean paired difference.

    The error is None for a metric that is not a mean over examples, and for groups.
    """
    return {
        task: {metric: _change(score, before[task][metric]) for metric, score in metrics.items()}
        for task, metrics in after.items()
    }


def _change(after: TaskScore, before: TaskScore) -> dict[str, float | None]:
    error = math.nan
    if after.value_E is not None and before.value_E is not None and len(after.value_E) > 1:
        error = float(np.std(after.value_E - before.value_E, ddof=1)) / math.sqrt(len(after.value_E))
    return {"change": number(after.value - before.value), "change_standard_error": number(error)}
