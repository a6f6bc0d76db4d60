"""Evaluate a run or a model's folder, compare it with the model it started from, and write the result as JSON.

The file's name states the split and the checkpoint where they are not the default ones. It always has the newest
result; an earlier one with other options is renamed. Every result stores its options under `asked`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from versatune_ds.config import RunConfig
from versatune_ds.data.sources.missing_data import MissingDataError
from versatune_ds.distributed import World
from versatune_ds.evaluation.choices import read_choices
from versatune_ds.evaluation.data import Request
from versatune_ds.evaluation.harness import (
    HarnessTasks,
    TaskScores,
    find_tasks,
    run_tasks,
    score_changes,
    scores_to_dict,
)
from versatune_ds.evaluation.measure import evaluate_subject
from versatune_ds.evaluation.result import Evaluation, retention
from versatune_ds.evaluation.subject import Subject, base_subject, config_of, is_run, load_subject, trained_subject
from versatune_ds.evaluation.table import evaluation_table
from versatune_ds.launch.process_pool import device_of
from versatune_ds.launch.rank_pool import led_world, remove_at_exit
from versatune_ds.launch.sharded_pool import check_sharded
from versatune_ds.model.router_loss import omit_router_logits
from versatune_ds.run_folder.atomic import write_json
from versatune_ds.run_folder.names import EVALUATION_FILE

logger = logging.getLogger(__name__)

_NUM_EXACT_SYNTHETIC = 100

_IF_MOVED = "if the run or its data were moved, specify where the data are: data.folder=FOLDER, or --recipe FILE"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateOptions:
    """Options of `versatune evaluate`; None chooses a default that depends on the data."""

    recipe: Path | None = None
    overrides: Sequence[str] = ()
    split: str | None = None
    """By default `test` for the built-in corpus, else `valid`."""
    choice_paths: Sequence[Path] = ()
    harness_tasks: Sequence[str] = ()
    """Tasks of lm-evaluation-harness."""
    harness_include: Path | None = None
    harness_limit: int | None = None
    limit: int | None = None
    """Largest number of held-out examples, and of multiple-choice questions, of a domain; None for all."""
    num_exact: int | None = None
    """Answers generated in each domain: by default 100 on the built-in corpus, else none."""
    against: Path | None = None
    has_base: bool = True
    step: int | None = None
    processes: int = 1
    is_sharded: bool = False
    """Whether the model's weights are divided over the processes (ZeRO-3), for one that no GPU holds."""
    output: Path | None = None


def evaluate(model: Path, options: EvaluateOptions) -> dict[str, Any]:
    """Evaluate a model, write the result as JSON, and return it.

    Args:
        model: A run's folder, or one that transformers loads.
        options: Data, questions, base model, output.

    Raises:
        ValueError: If a file, folder or option is missing or invalid, before a model is loaded.
    """
    # Check the options, before anything slow.
    if options.processes < 1:
        raise ValueError(f"--processes={options.processes}: expected 1 or more")
    if options.is_sharded:
        check_sharded(options.processes)
    if options.is_sharded and options.harness_tasks:
        raise ValueError("--harness: lm-evaluation-harness needs a complete model in one process; leave out --sharded")
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"--limit={options.limit}: expected 1 or more")
    if options.output is not None and (options.output.is_dir() or not options.output.parent.is_dir()):
        raise ValueError(f"--output: {options.output}: expected a file in an existing folder")
    if options.against is not None and not options.against.is_dir():
        raise ValueError(f"--against: {options.against}: no such folder; give a run's or a transformers model's")
    if not options.harness_tasks and (options.harness_include is not None or options.harness_limit is not None):
        raise ValueError("--harness-include and --harness-limit need tasks: --harness TASK[,TASK]")
    # Find the data, the questions and the tasks.
    config = config_of(model, recipe=options.recipe, overrides=options.overrides)
    is_synthetic = config.data.synthetic is not None
    default_split, default_num_exact = ("test", _NUM_EXACT_SYNTHETIC) if is_synthetic else ("valid", 0)
    request = Request(
        config=config,
        split=options.split or default_split,
        choices=read_choices(options.choice_paths),
        num_exact=default_num_exact if options.num_exact is None else options.num_exact,
        limit=options.limit,
    )
    tasks = None
    if options.harness_tasks:
        tasks = find_tasks(options.harness_tasks, include=options.harness_include, limit=options.harness_limit)
    # Evaluate, and write the result.
    workspace = None if led_world() is None else _shared_folder(config)
    with tempfile.TemporaryDirectory(prefix="versatune_evaluate_", dir=workspace) as name:
        remove_at_exit(Path(name))
        try:
            result = _compare(model, request, tasks=tasks, options=options, workspace=Path(name))
        except MissingDataError as error:
            is_own_recipe = options.recipe is None  # the run's, written before its data may have moved
            raise ValueError(f"{error}; {_IF_MOVED}" if is_own_recipe else str(error)) from error
    result["asked"] = _asked(options, request)
    if options.output is not None or is_run(model):
        name = result_name(split=request.split, default_split=default_split, step=options.step)
        write_result(result, options.output or model / name)
    else:
        logger.info("%s is not a run's folder, so no file was written; --output FILE writes the result", model)
    return result


def _shared_folder(config: RunConfig) -> Path:
    """Return a folder that all machines see: that of the runs."""
    config.run.output_dir.mkdir(parents=True, exist_ok=True)
    return config.run.output_dir.absolute()


def _asked(options: EvaluateOptions, request: Request) -> dict[str, Any]:
    """Return the options that the result depends on."""
    asked = {
        "recipe": None if options.recipe is None else str(options.recipe),
        "overrides": list(options.overrides),
        "split": request.split,
        "step": options.step,
        "exact": request.num_exact,
        "choices": [str(path) for path in options.choice_paths],
        "harness": list(options.harness_tasks),
        "harness_include": None if options.harness_include is None else str(options.harness_include),
        "harness_limit": options.harness_limit,
        "base": str(options.against or "what the run began from") if options.has_base else None,
    }
    return asked if options.limit is None else {**asked, "limit": options.limit}  # earlier results have no such key


def _compare(
    model: Path, request: Request, *, tasks: HarnessTasks | None, options: EvaluateOptions, workspace: Path
) -> dict[str, Any]:
    """Evaluate the model and, where there is one, the base model, and return both results with the changes."""
    # The model itself.
    subject = trained_subject(model, workspace=workspace, step=options.step)
    after, scores_after = _evaluate(subject, request, tasks=tasks, options=options)
    result: dict[str, Any] = {
        "model": subject.name,
        "split": request.split,
        "precision": request.config.train.precision,
        "domains": after.to_dict(),
    }
    # The model it started from, or another one.
    base, scores_before = None, None
    if options.has_base:
        base = base_subject(model, request.config, against=options.against, workspace=workspace)
    if base is not None:
        before, scores_before = _evaluate(base, request, tasks=tasks, options=options)
        result["base"] = {"model": base.name, "domains": before.to_dict()}
        result["retention"] = retention(after, before)
    # The harness's tasks.
    if scores_after is not None:
        result["harness"] = scores_to_dict(scores_after)
    if scores_after is not None and scores_before is not None:
        result["base"]["harness"] = scores_to_dict(scores_before)
        result["harness_retention"] = score_changes(scores_after, scores_before)
    logger.info("evaluated %s", subject.name)
    return result


def _evaluate(
    subject: Subject, request: Request, *, tasks: HarnessTasks | None, options: EvaluateOptions
) -> tuple[Evaluation, TaskScores | None]:
    """Evaluate one model, and run the harness's tasks on it in this process; None for the scores without tasks."""
    logger.info("evaluating %s", subject.name)
    evaluation = evaluate_subject(subject, request, num_processes=options.processes, is_sharded=options.is_sharded)
    if tasks is None:
        return evaluation, None
    logger.info("running %s on %s", ", ".join(tasks.names), subject.name)
    causal_lm, tokenizer = load_subject(subject, request.config)
    causal_lm.to(device_of(World()))
    omit_router_logits(causal_lm)
    return evaluation, run_tasks(causal_lm, tokenizer, tasks, batch_size=request.config.rows_evaluated_at_once)


def result_name(*, split: str, default_split: str, step: int | None) -> str:
    """Return `evaluation.json`, with the split added if it is not the default, and the step if one was given.

    Example: `evaluation-valid-step-100.json`.
    """
    name = Path(EVALUATION_FILE)
    words = [name.stem]
    if split != default_split:
        words.append(split)
    if step is not None:
        words.append(f"step-{step}")
    return "-".join(words) + name.suffix


def write_result(result: Mapping[str, Any], path: Path) -> None:
    """Write a result; an earlier one with other options is kept under another name.

    Args:
        result: The result, with its options as `asked`.
        path: File to write.
    """
    kept = _path_for_earlier(path, asked=result["asked"])
    if kept is not None:
        path.replace(kept)
        logger.info("kept the earlier result, made with other options, as %s", kept)
    write_json(path, result)
    logger.info("wrote %s", path)


def _path_for_earlier(path: Path, *, asked: Mapping[str, Any]) -> Path | None:
    """Return where to keep an earlier result; None if there is none, or its options are the same."""
    if not path.is_file():
        return None
    try:
        earlier = json.loads(path.read_text(encoding="utf-8")).get("asked")
    except (ValueError, AttributeError):
        earlier = "unreadable"  # truncated by a full disk, perhaps; keep it for the user
    if earlier == asked:
        return None
    digest = hashlib.blake2b(json.dumps(earlier, sort_keys=True).encode(), digest_size=4).hexdigest()
    return path.with_name(f"{path.stem}-{digest}{path.suffix}")


def shown(result: dict[str, Any], *, as_json: bool) -> str:
    """Return a result as a table, or as JSON."""
    return json.dumps(result, indent=1) if as_json else evaluation_table(result)
