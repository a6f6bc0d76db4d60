"""Subcommands about a run's folder: replay, explain, report and export."""

from __future__ import annotations

import argparse
import contextlib
import sys
import webbrowser

from versatune_ds.cli.arguments import (
    DEFAULT_CHECKPOINT,
    FILE,
    FOLDER,
    NUMBER,
    OVERRIDES,
    Commands,
    add_command,
    add_run_folder,
    check_can_write,
    path_argument,
    write,
)
from versatune_ds.paths import check_replaceable
from versatune_ds.run_folder.names import EXPORT_FOLDER


def add_replay(commands: Commands) -> None:
    """Add `versatune replay`."""
    command = add_command(
        commands, "replay", _replay, example="versatune replay runs/quickstart mixture.steer.anchor=0.2"
    )
    add_run_folder(command)
    command.add_argument("overrides", **OVERRIDES, help="keys of the mixture section to change, e.g. mixture.sigma=0.1")
    command.add_argument("--output", **FILE, help="write the decisions, in the format of decisions.jsonl")


def _replay(parsed: argparse.Namespace) -> int:
    """Decide again from a run's recorded losses, with its own settings or with others."""
    from versatune_ds.training.run_records import replay_run

    check_replaceable(parsed.output, mark='"decided_at_step"')
    replay = replay_run(parsed.run_dir, parsed.overrides)
    write(replay.text)
    if parsed.output:
        parsed.output.write_text(replay.to_jsonl(), encoding="utf-8")
    return 0


def add_explain(commands: Commands) -> None:
    """Add `versatune explain`."""
    command = add_command(commands, "explain", _explain, example="versatune explain runs/quickstart --step 100")
    add_run_folder(command)
    command.add_argument(
        "--step", **NUMBER, help="explain the last decision made at or before step N (default: the newest)"
    )


def _explain(parsed: argparse.Namespace) -> int:
    """Explain one decision of a run in words and numbers."""
    from versatune_ds.training.run_records import explain_run

    write(explain_run(parsed.run_dir, step=parsed.step))
    return 0


def add_report(commands: Commands) -> None:
    """Add `versatune report`."""
    command = add_command(commands, "report", _report, example="versatune report runs/quickstart")
    command.add_argument(
        "run_dirs", type=path_argument, nargs="+", metavar="RUN", help="folders of runs, e.g. runs/quickstart"
    )
    command.add_argument("--output", **FILE, help="page to write (default: RUN/report/index.html)")
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


def _report(parsed: argparse.Namespace) -> int:
    """Write an HTML page about one run, or several side by side; works while a run is in progress."""
    from versatune_ds.report.finish import write_report

    check_replaceable(parsed.output, mark="default-src 'none'; img-src data:")
    page = write_report(parsed.run_dirs, output=parsed.output, pictures=parsed.pictures)
    if parsed.open:
        webbrowser.open(page.resolve().as_uri())
    return 0


def add_export(commands: Commands) -> None:
    """Add `versatune export`."""
    command = add_command(commands, "export", _export, example="versatune export runs/quickstart --output my_model")
    add_run_folder(command)
    command.add_argument("--output", **FOLDER, help="folder to write (default: RUN/export)")
    command.add_argument("--step", **NUMBER, help=f"checkpoint to export (default: {DEFAULT_CHECKPOINT})")
    command.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), help="precision of the weights (default: the run's)"
    )
    command.add_argument(
        "--lora",
        choices=("merged", "adapter"),
        default="merged",
        help="adapters of model.lora: merged into the weights (default), or exported alone",
    )
    command.add_argument(
        "--max-shard-size",
        default="5GB",
        metavar="SIZE",
        help="maximum size of a weights file, e.g. 500MB (default: 5GB)",
    )
    command.add_argument(
        "--force", action="store_true", help="write into a folder that has other content, overwriting its files"
    )
    command.add_argument(
        "--push", metavar="REPO_ID", help="then upload the export to this repository of the Hugging Face Hub"
    )
    command.add_argument("--private", action="store_true", help="with --push: to a private repository")


def _export(parsed: argparse.Namespace) -> int:
    """Export a run's model as a folder that transformers can load."""
    check_can_write(parsed)
    from versatune_ds.export.run_export import export_run
    from versatune_ds.run_folder.folder_lock import lock_folder

    output = parsed.output or parsed.run_dir / EXPORT_FOLDER
    target = None
    if parsed.push is not None:
        from versatune_ds.export.push import check_push, push_export

        target = check_push(parsed.push, is_private=parsed.private)
    elif parsed.private:
        raise ValueError("--private: expected together with --push REPO_ID; add that, or leave --private out")
    alone = lock_folder(output, way_out="give another --output")
    with alone, contextlib.redirect_stdout(sys.stderr):  # DeepSpeed prints while it reads; stdout is for the path
        folder = export_run(
            parsed.run_dir,
            output=output,
            precision=parsed.precision,
            step=parsed.step,
            lora=parsed.lora,
            max_shard_size=parsed.max_shard_size,
            is_forced=parsed.force,
            repo_id=None if target is None else target.repo_id,
        )
    write(str(folder))
    if target is not None:
        write(push_export(folder, target))
    return 0
