"""Subcommands about the result of runs: report, export, evaluate and compare."""

from __future__ import annotations

import argparse
import contextlib
import sys
import webbrowser

from versatune_ds.cli.arguments import Commands, add_command, add_run_command, comma_separated, path_argument, write
from versatune_ds.paths import check_replaceable
from versatune_ds.run_folder.names import EXPORT_FOLDER


def add_report(commands: Commands) -> None:
    """Add `versatune report`."""
    help_text = "Write an HTML page about one run, or several side by side; works while a run is in progress."
    command = add_command(commands, "report", help_text, example="versatune report runs/quickstart")
    command.add_argument(
        "run_dirs", type=path_argument, nargs="+", metavar="RUN", help="folders of runs, e.g. runs/quickstart"
    )
    command.add_argument(
        "--output", type=path_argument, metavar="FILE", help="page to write (default: RUN/report/index.html)"
    )
    for ending in ("png", "svg"):
        command.add_argument(
            f"--{ending}",
            dest="pictures",
            action="append_const",
            const=ending,
            default=[],
            help=f"also plot weights and losses as RUN/report/weights.{ending}",
        )
    command.add_argument("--open", action="store_true", help="open the page in a browser")
    command.set_defaults(run=_report)


def _report(parsed: argparse.Namespace) -> int:
    from versatune_ds.report.finish import write_report

    check_replaceable(parsed.output, mark="default-src 'none'; img-src data:")
    page = write_report(parsed.run_dirs, output=parsed.output, pictures=parsed.pictures)
    if parsed.open:
        webbrowser.open(page.resolve().as_uri())
    return 0


def add_export(commands: Commands) -> None:
    """Add `versatune export`."""
    help_text = "Export a run's model as a folder that transformers can load."
    command = add_run_command(
        commands,
        "export",
        help_text,
        example="versatune export runs/quickstart --output my_model",
    )
    command.add_argument("--output", type=path_argument, metavar="FOLDER", help="folder to write (default: RUN/export)")
    command.add_argument(
        "--step", type=int, metavar="N", help="checkpoint to export (default: the newest complete one)"
    )
    command.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), help="precision of the weights (default: the run's)"
    )
    command.add_argument(
        "--lora", choices=("merged", "adapter"), default="merged",
        help="adapters of model.lora: merged into the weights (default), or exported alone",
    )  # fmt: skip
    command.add_argument(
        "--max-shard-size",
        default="5GB",
        metavar="SIZE",
        help="maximum size of a weights file, e.g. 500MB (default: 5GB)",
    )
    command.add_argument(
        "--force", action="store_true", help="write into a folder that has other content, overwriting its files"
    )
    command.set_defaults(run=_export)


def _export(parsed: argparse.Namespace) -> int:
    from versatune_ds.export.run_export import export_run
    from versatune_ds.run_folder.folder_lock import locked_folder

    output = parsed.output or parsed.run_dir / EXPORT_FOLDER
    alone = locked_folder(output, way_out="give another --output")
    with alone, contextlib.redirect_stdout(sys.stderr):  # DeepSpeed prints while it reads; stdout is for the path
        folder = export_run(
            parsed.run_dir,
            output=output,
            precision=parsed.precision,
            step=parsed.step,
            lora=parsed.lora,
            max_shard_size=parsed.max_shard_size,
            is_forced=parsed.force,
        )
    write(str(folder))
    return 0


def add_evaluate(commands: Commands) -> None:
    """Add `versatune evaluate`."""
    help_text = "Evaluate a model by domain: held-out loss, written answers, multiple choice, and what it forgot."
    command = add_command(
        commands, "evaluate", help_text, example="versatune evaluate runs/quickstart --choices choices/ --split test"
    )
    command.add_argument(
        "model",
        type=path_argument,
        metavar="RUN|FOLDER",
        help="folder of a run, or of a model that transformers can load",
    )
    command.add_argument(
        "overrides", nargs="*", metavar="key=value", help="recipe keys to change, e.g. data.folder=my_data"
    )
    command.add_argument(
        "--recipe",
        type=path_argument,
        dest="data_recipe",
        metavar="FILE",
        help="recipe that defines the data (default: the run's)",
    )
    command.add_argument(
        "--split",
        choices=("valid", "test"),
        help="split to evaluate on (default: test for the built-in corpus, else valid)",
    )
    _add_answer_options(command)
    command.add_argument(
        "--against",
        type=path_argument,
        metavar="BASE",
        help="run or model folder to compare with (default: the model that the run started from)",
    )
    command.add_argument("--no-base", action="store_true", help="do not compare with another model")
    command.add_argument(
        "--step", type=int, metavar="N", help="checkpoint to evaluate (default: the newest complete one)"
    )
    command.add_argument(
        "--processes", type=int, default=1, metavar="N", help="processes that share the work (default: 1)"
    )
    command.add_argument(
        "--output",
        type=path_argument,
        metavar="FILE",
        help="JSON file to write (default: evaluation.json in the run's folder)",
    )
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    command.add_argument("--quiet", action="store_true", help="log only warnings and errors")
    command.set_defaults(run=_evaluate)


def _add_answer_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `versatune evaluate` for tasks besides the held-out loss."""
    command.add_argument(
        "--choices", type=path_argument, nargs="+", default=[], metavar="PATH",
        help='multiple choice: DOMAIN.jsonl or folders of them, {"question", "choices", "answer": index from 0}',
    )  # fmt: skip
    command.add_argument(
        "--harness", type=comma_separated, default=(), metavar="TASK[,TASK]",
        help="lm-evaluation-harness tasks to run too, e.g. arc_easy or my_task.yaml (needs the extra `harness`)",
    )  # fmt: skip
    command.add_argument(
        "--harness-include", type=path_argument, metavar="FOLDER", help="folder with YAML files of more harness tasks"
    )
    command.add_argument("--harness-limit", type=int, metavar="N", help="examples per harness task (default: all)")
    command.add_argument(
        "--exact", type=int, metavar="N",
        help="answers to generate per domain and compare with the data's (default: 100 on the built-in corpus, else 0)",
    )  # fmt: skip


def _evaluate(parsed: argparse.Namespace) -> int:
    from versatune_ds.evaluation.command import EvaluateOptions, evaluate, shown

    options = EvaluateOptions(
        recipe=parsed.data_recipe,
        overrides=parsed.overrides,
        split=parsed.split,
        choice_paths=parsed.choices,
        harness_tasks=parsed.harness,
        harness_include=parsed.harness_include,
        harness_limit=parsed.harness_limit,
        num_exact=parsed.exact,
        against=parsed.against,
        has_base=not parsed.no_base,
        step=parsed.step,
        processes=parsed.processes,
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
        "Train and evaluate several policies on one base model, over several seeds, and write a page of the results.",
        example="versatune compare recipes/compare/multi_ability.yaml seeds=[1,2,3] --jobs 2",
    )
    command.add_argument("comparison", type=path_argument, help="YAML file, see recipes/compare/")
    command.add_argument(
        "overrides", nargs="*", metavar="key=value",
        help="keys of the comparison to change, e.g. seeds=[1,2] or data.folder=my_data; keys of its recipe start with "
        "`set.`, e.g. set.train.steps=50",
    )  # fmt: skip
    command.add_argument(
        "--jobs", type=int, metavar="N", help="runs at a time (default: one per GPU, else one per CPU core)"
    )
    command.set_defaults(run=_compare)


def _compare(parsed: argparse.Namespace) -> int:
    from versatune_ds.comparison.compare import compare

    write(str(compare(parsed.comparison, parsed.overrides, num_jobs=parsed.jobs)))
    return 0
