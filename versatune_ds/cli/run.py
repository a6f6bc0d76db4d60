"""Wire the subcommands about a run that is there: report and export."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path

from versatune_ds.cli.arguments import Commands, add_run_command, write


def add_report(commands: Commands) -> None:
    """Add `versatune report`."""
    help_text = "Show a run's table and draw its weights; works while the run is going on."
    command = add_run_command(
        commands,
        "report",
        help_text,
        example="versatune report runs/quickstart",
    )
    command.set_defaults(run=_report)


def _report(parsed: argparse.Namespace) -> int:
    from versatune_ds.report.finish import show_summary

    show_summary(parsed.run_dir)
    return 0


def add_export(commands: Commands) -> None:
    """Add `versatune export`."""
    help_text = "Write a run's model as a folder that transformers loads."
    command = add_run_command(
        commands,
        "export",
        help_text,
        example="versatune export runs/quickstart --output my_model",
    )
    command.add_argument("--output", type=Path, metavar="FOLDER", help="folder to write (default: RUN/export)")
    command.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), help="number format of the weights (default: the run's)"
    )
    command.set_defaults(run=_export)


def _export(parsed: argparse.Namespace) -> int:
    from versatune_ds.training.export import export_run

    output = parsed.output or parsed.run_dir / "export"
    with contextlib.redirect_stdout(sys.stderr):  # DeepSpeed prints while it reads; stdout is for the path
        folder = export_run(parsed.run_dir, output=output, precision=parsed.precision)
    write(str(folder))
    return 0
