"""Define the `versatune` command: parse, wire, exit. No logic lives here.

The one idea: every subcommand returns an exit code; what a user got wrong is one line on stderr and code 2.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from versatune_ds import __version__
from versatune_ds.log import configure_logging

USER_ERROR_EXIT_CODE = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code."""
    parsed = parse(arguments)
    configure_logging(level=logging.WARNING if getattr(parsed, "quiet", False) else logging.INFO)
    try:
        return parsed.run(parsed)
    except ValueError as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"versatune: {line}\n")
        return USER_ERROR_EXIT_CODE
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        return 130


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; `key=value` may stand before and behind options, which argparse alone refuses."""
    parser = build_parser()
    parsed, rest = parser.parse_known_args(arguments)
    if any(text.startswith("-") or "=" not in text for text in rest) or (rest and not hasattr(parsed, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        parsed.overrides = [*parsed.overrides, *rest]
    return parsed


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands."""
    parser = argparse.ArgumentParser(
        prog="versatune", description="Fine-tune a language model on several domains with a mixture that moves."
    )
    parser.add_argument("--version", action="version", version=f"versatune_ds {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_worker(commands)
    _add_prepare(commands)
    _add_inspect(commands)
    _add_simulate(commands)
    _add_replay(commands)
    _add_explain(commands)
    _add_report(commands)
    _add_export(commands)
    return parser


EXAMPLES = {
    "train": "versatune train recipes/quickstart.yaml --processes 2 mixture.sigma=0.3 run.name=slow",
    "worker": "deepspeed --num_gpus 8 launcher/train.py recipes/quickstart.yaml",
    "prepare": "versatune prepare recipes/six_domains.yaml data.folder=my_data",
    "inspect": "versatune inspect recipes/quickstart.yaml --steps 0:20 --world-size 4",
    "simulate": "versatune simulate recipes/quickstart.yaml --sweep mixture.sigma=0.1,0.3,1",
    "replay": "versatune replay runs/quickstart mixture.sigma=0.1",
    "explain": "versatune explain runs/quickstart --step 100",
    "report": "versatune report runs/quickstart",
    "export": "versatune export runs/quickstart --output my_model",
}
"""Shown at the end of each subcommand's help."""


def _add_command(commands: argparse._SubParsersAction, name: str, help_text: str) -> argparse.ArgumentParser:
    """Add a subcommand with its example."""
    return commands.add_parser(
        name,
        help=help_text,
        description=help_text,
        epilog=f"example:\n  {EXAMPLES[name]}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_recipe_command(commands: argparse._SubParsersAction, name: str, help_text: str) -> argparse.ArgumentParser:
    """Add a subcommand that takes a recipe and overrides."""
    command = _add_command(commands, name, help_text)
    command.add_argument("recipe", type=Path, help="YAML file; see recipes/")
    command.add_argument("overrides", nargs="*", metavar="key=value", help="dotted keys, e.g. mixture.sigma=0.3")
    command.add_argument("--quiet", action="store_true", help="show warnings and errors only")
    return command


def _add_train(commands: argparse._SubParsersAction) -> None:
    command = _add_recipe_command(commands, "train", "Start a run on this machine, or resume it if its folder exists.")
    command.add_argument("--fresh", action="store_true", help="delete the run's folder and start over")
    command.add_argument("--processes", type=int, help="processes to start; default: one per GPU, or 1 without a GPU")
    command.set_defaults(run=_train)


def _train(parsed: argparse.Namespace) -> int:
    from versatune_ds.training.launch import launch

    return launch(
        parsed.recipe, parsed.overrides, processes=parsed.processes, is_fresh=parsed.fresh, is_quiet=parsed.quiet
    )


def _add_worker(commands: argparse._SubParsersAction) -> None:
    help_text = "Be one process of a run; deepspeed, torchrun, srun and mpirun start it through launcher/train.py."
    command = _add_recipe_command(commands, "worker", help_text)
    command.add_argument("--fresh", action="store_true", help="delete the run's folder and start over")
    command.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    command.set_defaults(run=_worker)


def _worker(parsed: argparse.Namespace) -> int:
    from versatune_ds.report.finish import show_summary
    from versatune_ds.training.worker import run_worker

    return run_worker(
        parsed.recipe, parsed.overrides, is_fresh=parsed.fresh, is_quiet=parsed.quiet, when_complete=show_summary
    )


def _add_prepare(commands: argparse._SubParsersAction) -> None:
    command = _add_recipe_command(commands, "prepare", "Tokenise a recipe's data and show what is in it.")
    command.set_defaults(run=_prepare)


def _prepare(parsed: argparse.Namespace) -> int:
    from versatune_ds.config import load_config
    from versatune_ds.training.prepared import prepare_recipe

    prepare_recipe(load_config(parsed.recipe, parsed.overrides))
    return 0


def _add_inspect(commands: argparse._SubParsersAction) -> None:
    help_text = "Show the packed rows that training reads, as JSON lines or as text."
    command = _add_recipe_command(commands, "inspect", help_text)
    command.add_argument(
        "--steps", required=True, metavar="AFTER:LAST", help="steps after AFTER up to LAST, e.g. 0:20 for the first 20"
    )
    command.add_argument(
        "--world-size", type=int, metavar="N", help="add the rank that reads a row when N processes train"
    )
    command.add_argument(
        "--resume-at",
        type=int,
        metavar="S",
        help="save and restore the place in the data after step S, which must change no row",
    )
    command.add_argument(
        "--run", type=Path, dest="run_dir", metavar="RUN",
        help="take the weights that this run decided; without it those of step 0 hold throughout",
    )  # fmt: skip
    command.add_argument(
        "--text", action="store_true", help="show rows as the model reads them, parts without loss in brackets"
    )
    command.set_defaults(run=_inspect)


def _inspect(parsed: argparse.Namespace) -> int:
    from versatune_ds.config import load_config
    from versatune_ds.training.inspect_recipe import Inspection, StepRange, inspect_as_json, inspect_as_text

    inspection = Inspection(
        steps=StepRange.parse(parsed.steps),
        world_size=parsed.world_size,
        resume_at=parsed.resume_at,
        run_dir=parsed.run_dir,
    )
    show = inspect_as_text if parsed.text else inspect_as_json
    for line in show(load_config(parsed.recipe, parsed.overrides), inspection):
        _write(line)
    return 0


def _add_simulate(commands: argparse._SubParsersAction) -> None:
    help_text = "Let the controller decide without training, on a synthetic learner or on recorded losses."
    command = _add_recipe_command(commands, "simulate", help_text)
    command.add_argument(
        "--losses", type=Path, metavar="FILE",
        help='JSON lines {"update", "step", "losses": {domain: nats}}, or a decisions.jsonl; default: synthetic',
    )  # fmt: skip
    command.add_argument(
        "--sweep", action="append", default=[], metavar="KEY=A,B,...",
        help="compare values of a key, e.g. mixture.sigma=0.1,0.3,1; may be given several times",
    )  # fmt: skip
    command.add_argument("--steps", type=int, metavar="N", help="steps of the synthetic run (default: train.steps)")
    command.add_argument("--noise", type=float, default=0.0, help="relative error of a measured change, e.g. 0.004")
    command.add_argument("--seed", type=int, default=0, help="which synthetic learner (default: 0)")
    command.add_argument("--output", type=Path, metavar="FILE", help="write the decisions as in decisions.jsonl")
    command.add_argument("--plot", type=Path, metavar="FILE", help="draw weights, losses, potential and forgetting")
    command.set_defaults(run=_simulate)


def _simulate(parsed: argparse.Namespace) -> int:
    from versatune_ds.report.decision_plot import plot_decisions
    from versatune_ds.training.simulate_recipe import Learner, simulate_recipe

    learner = Learner(losses_file=parsed.losses, num_steps=parsed.steps, seed=parsed.seed, noise=parsed.noise)
    if parsed.sweep and (parsed.output or parsed.plot):
        raise ValueError("--output and --plot take the decisions of one setting; leave --sweep out")
    trial = simulate_recipe(parsed.recipe, parsed.overrides, learner=learner, sweeps=parsed.sweep)
    _write(trial.text)
    if parsed.output:
        parsed.output.write_text(trial.only.to_jsonl(), encoding="utf-8")
    if parsed.plot:
        _write(f"plot  {plot_decisions(trial.only.decisions, parsed.plot)}")
    return 0


def _add_run_command(commands: argparse._SubParsersAction, name: str, help_text: str) -> argparse.ArgumentParser:
    """Add a subcommand that takes the folder of a run."""
    command = _add_command(commands, name, help_text)
    command.add_argument("run_dir", type=Path, metavar="RUN", help="folder of a run, e.g. runs/quickstart")
    return command


def _add_replay(commands: argparse._SubParsersAction) -> None:
    help_text = "Decide a run's recorded losses again, with its own settings or with others."
    command = _add_run_command(commands, "replay", help_text)
    command.add_argument("overrides", nargs="*", metavar="key=value", help="keys of mixture, e.g. mixture.sigma=0.1")
    command.add_argument("--output", type=Path, metavar="FILE", help="write the decisions as in decisions.jsonl")
    command.set_defaults(run=_replay)


def _replay(parsed: argparse.Namespace) -> int:
    from versatune_ds.training.recorded import replay_run

    replay = replay_run(parsed.run_dir, parsed.overrides)
    _write(replay.text)
    if parsed.output:
        parsed.output.write_text(replay.to_jsonl(), encoding="utf-8")
    return 0


def _add_explain(commands: argparse._SubParsersAction) -> None:
    command = _add_run_command(commands, "explain", "Say one decision of a run in words and numbers.")
    command.add_argument(
        "--step", type=int, metavar="N", help="the last decision made at or before step N (default: the newest)"
    )
    command.set_defaults(run=_explain)


def _explain(parsed: argparse.Namespace) -> int:
    from versatune_ds.training.recorded import explain_run

    _write(explain_run(parsed.run_dir, step=parsed.step))
    return 0


def _write(text: str) -> None:
    """Write text and a line end to stdout; what its encoding lacks is written as an escape."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")


def _add_report(commands: argparse._SubParsersAction) -> None:
    help_text = "Show a run's table and draw its weights; works while the run is going on."
    command = _add_run_command(commands, "report", help_text)
    command.set_defaults(run=_report)


def _report(parsed: argparse.Namespace) -> int:
    from versatune_ds.report.finish import show_summary

    show_summary(parsed.run_dir)
    return 0


def _add_export(commands: argparse._SubParsersAction) -> None:
    help_text = "Write a run's model as a folder that transformers loads."
    command = _add_run_command(commands, "export", help_text)
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
    _write(str(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
