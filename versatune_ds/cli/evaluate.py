"""Subcommands that measure what training did: evaluate one model, compare several policies."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time

from versatune_ds.cli.arguments import (
    DEFAULT_CHECKPOINT,
    FILE,
    FOLDER,
    NUMBER,
    OVERRIDES,
    Commands,
    add_command,
    add_nodes,
    check_can_write,
    check_shared_weights,
    comma_separated,
    on_machines,
    path_argument,
    write,
)


def add_evaluate(commands: Commands) -> None:
    """Add `versatune evaluate`."""
    command = add_command(
        commands, "evaluate", _evaluate, example="versatune evaluate runs/quickstart --choices choices/ --split test"
    )
    command.set_defaults(check=_check_model)
    command.add_argument(
        "model",
        type=path_argument,
        metavar="RUN|FOLDER",
        help="folder of a run, or of a model that transformers can load",
    )
    command.add_argument("overrides", **OVERRIDES, help="recipe keys to change, e.g. data.folder=my_data")
    command.add_argument(
        "--recipe", **FILE, dest="data_recipe", help="recipe that defines the data (default: the run's)"
    )
    command.add_argument(
        "--split",
        type=_split_name,
        choices=("valid", "test"),
        help="split to evaluate on (default: test for the built-in corpus, else valid)",
    )
    command.add_argument(
        "--limit",
        **NUMBER,
        help="most held-out examples, and multiple-choice questions, of each domain (default: all; a run measures "
        "validation.max_examples_per_domain)",
    )
    _add_answer_options(command)
    command.add_argument(
        "--against",
        type=path_argument,
        metavar="BASE",
        help="run or model folder to compare with (default: the model that the run started from)",
    )
    command.add_argument("--no-base", action="store_true", help="do not compare with another model")
    command.add_argument("--step", **NUMBER, help=f"checkpoint to evaluate (default: {DEFAULT_CHECKPOINT})")
    command.add_argument("--processes", **NUMBER, help="processes that share the work (default: 1), on each machine")
    command.add_argument(
        "--sharded",
        action="store_true",
        help="divide the model's weights over the processes (ZeRO-3): for one that no single GPU holds",
    )
    add_nodes(command)
    command.add_argument("--output", **FILE, help="JSON file to write (default: evaluation.json in the run's folder)")
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    command.add_argument("--quiet", action="store_true", help="log only warnings and errors")


def _check_model(parsed: argparse.Namespace) -> None:
    """Check that there is such a folder before libraries are imported; the processes of --sharded check it together."""
    if parsed.worker:
        return
    from versatune_ds.run_folder.recorded_config import check_model_folder

    check_model_folder(parsed.model, has_recipe=parsed.data_recipe is not None)


def _split_name(text: str) -> str:
    """Return our name of a split that others call validation, val, eval or dev."""
    return "valid" if text in ("validation", "val", "eval", "dev") else text


def _add_answer_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `versatune evaluate` for tasks besides the held-out loss."""
    command.add_argument(
        "--choices",
        type=path_argument,
        nargs="+",
        default=[],
        metavar="PATH",
        help='multiple choice: DOMAIN.jsonl or folders of them, {"question", "choices", "answer": index from 0}',
    )
    command.add_argument(
        "--harness",
        type=comma_separated,
        default=(),
        metavar="TASK[,TASK]",
        help="lm-evaluation-harness tasks to run too, e.g. arc_easy or my_task.yaml (needs the extra `harness`)",
    )
    command.add_argument("--harness-include", **FOLDER, help="folder with YAML files of more harness tasks")
    command.add_argument("--harness-limit", **NUMBER, help="examples per harness task (default: all)")
    command.add_argument(
        "--exact",
        **NUMBER,
        help="answers to generate per domain and compare with the data's (default: 100 on the built-in corpus, else 0)",
    )


def _evaluate(parsed: argparse.Namespace) -> int:
    """Evaluate a model by domain: held-out loss, written answers, multiple choice, and what it forgot."""
    check_can_write(parsed)
    check_shared_weights(parsed, default=1)
    return on_machines(parsed, lambda processes: _evaluate_here(parsed, processes=processes))


def _evaluate_here(parsed: argparse.Namespace, *, processes: int | None) -> int:
    """Evaluate with some processes, and write the result to stdout."""
    from versatune_ds.evaluation.command import EvaluateOptions, evaluate, shown

    options = EvaluateOptions(
        recipe=parsed.data_recipe,
        overrides=parsed.overrides,
        split=parsed.split,
        choice_paths=parsed.choices,
        harness_tasks=parsed.harness,
        harness_include=parsed.harness_include,
        harness_limit=parsed.harness_limit,
        limit=parsed.limit,
        num_exact=parsed.exact,
        against=parsed.against,
        has_base=not parsed.no_base,
        step=parsed.step,
        processes=1 if processes is None else processes,
        is_sharded=parsed.sharded,
        output=parsed.output,
    )
    with contextlib.redirect_stdout(sys.stderr):  # DeepSpeed prints while it reads; stdout is for the result
        result = evaluate(parsed.model, options)
    write(shown(result, as_json=parsed.json))
    return 0


def add_compare(commands: Commands) -> None:
    """Add `versatune compare`."""
    command = add_command(
        commands,
        "compare",
        _compare,
        example="versatune compare recipes/compare/multi_ability.yaml seeds=[1,2,3] --jobs 2",
        kept="finished stages and runs are kept",
    )
    command.add_argument("comparison", type=path_argument, help="YAML file, see recipes/compare/")
    command.add_argument(
        "overrides",
        **OVERRIDES,
        help="keys of the comparison to change, e.g. seeds=[1,2] or data.folder=my_data; keys of its recipe start with "
        "`set.`, e.g. set.train.steps=50",
    )
    command.add_argument("--jobs", **NUMBER, help="runs at a time (default: one per GPU, else one per CPU core)")
    command.add_argument("--jobs-per-gpu", **NUMBER, help="runs at a time on each GPU, in place of --jobs")
    command.add_argument(
        "--budget-seconds",
        type=float,
        metavar="S",
        help="end after S seconds with what is done: nothing is started that would not end in time; the same "
        "command resumes",
    )
    command.add_argument(
        "--run-seconds", type=float, metavar="S", help="how long a run takes, until the first one is done"
    )
    command.add_argument("--pack", **FILE, help="write all results into one small file (.tar.gz) for another machine")
    command.add_argument(
        "--continue",
        **FILE,
        dest="continued",
        help="load the results in such a file first: those of the same settings and starting point",
    )


def _compare(parsed: argparse.Namespace) -> int:
    """Train and evaluate several policies on one base model, over several seeds, and write a page of the results."""
    check_can_write(parsed)
    began = time.monotonic()  # the imports are part of the time budget
    from versatune_ds.comparison.compare import CompareOptions, compare

    options = CompareOptions(
        num_jobs=parsed.jobs,
        jobs_per_gpu=parsed.jobs_per_gpu,
        budget_seconds=parsed.budget_seconds,
        run_seconds=parsed.run_seconds,
        pack=parsed.pack,
        continued=parsed.continued,
        began=began,
    )
    page = compare(parsed.comparison, parsed.overrides, options)
    if page is not None:
        write(str(page))
    return 0
