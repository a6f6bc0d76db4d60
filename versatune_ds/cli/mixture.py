"""Subcommands about the controller's decisions: simulate, replay and explain."""

from __future__ import annotations

import argparse

from versatune_ds.cli.arguments import Commands, add_recipe_command, add_run_command, path_argument, write
from versatune_ds.paths import check_replaceable


def add_simulate(commands: Commands) -> None:
    """Add `versatune simulate`."""
    help_text = "Run the controller without training, on a synthetic learner or on recorded losses."
    command = add_recipe_command(
        commands,
        "simulate",
        help_text,
        example="versatune simulate recipes/quickstart.yaml --sweep mixture.steer.anchor=0,0.5,1",
    )
    command.add_argument(
        "--losses", type=path_argument, metavar="FILE",
        help='JSON lines {"update", "step", "losses": {domain: nats}}, or a decisions.jsonl (default: synthetic)',
    )  # fmt: skip
    command.add_argument(
        "--sweep", action="append", default=[], metavar="KEY=A,B,...",
        help="compare values of a key, e.g. mixture.sigma=0.1,0.3,1; repeat it for combinations of keys",
    )  # fmt: skip
    command.add_argument("--steps", type=int, metavar="N", help="steps of the synthetic run (default: train.steps)")
    command.add_argument(
        "--noise", type=float, default=0.0, help="relative error of a measured change, e.g. 0.004 (default: 0)"
    )
    command.add_argument("--seed", type=int, default=0, help="seed of the synthetic learner (default: 0)")
    command.add_argument(
        "--output", type=path_argument, metavar="FILE", help="write the decisions, in the format of decisions.jsonl"
    )
    command.add_argument(
        "--plot", type=path_argument, metavar="FILE", help="plot weights, losses, potential and forgetting"
    )
    command.set_defaults(run=_simulate)


def _simulate(parsed: argparse.Namespace) -> int:
    from versatune_ds.preflight.simulate_recipe import Learner, simulate_recipe
    from versatune_ds.report.plots import plot_decisions

    learner = Learner(losses_file=parsed.losses, num_steps=parsed.steps, seed=parsed.seed, noise=parsed.noise)
    if parsed.sweep and (parsed.output or parsed.plot):
        raise ValueError("--output and --plot take the decisions of one setting; leave --sweep out")
    check_replaceable(parsed.output, mark='"decided_at_step"')
    trial = simulate_recipe(parsed.recipe, parsed.overrides, learner=learner, sweeps=parsed.sweep)
    write(trial.text)
    if parsed.output:
        parsed.output.write_text(trial.only.to_jsonl(), encoding="utf-8")
    if parsed.plot:
        write(f"plot  {plot_decisions(trial.only.decisions, parsed.plot)}")
    return 0


def add_replay(commands: Commands) -> None:
    """Add `versatune replay`."""
    help_text = "Decide again from a run's recorded losses, with its own settings or with others."
    command = add_run_command(
        commands,
        "replay",
        help_text,
        example="versatune replay runs/quickstart mixture.steer.anchor=0.2",
    )
    command.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="keys of the mixture section to change, e.g. mixture.sigma=0.1",
    )
    command.add_argument(
        "--output", type=path_argument, metavar="FILE", help="write the decisions, in the format of decisions.jsonl"
    )
    command.set_defaults(run=_replay)


def _replay(parsed: argparse.Namespace) -> int:
    from versatune_ds.training.run_records import replay_run

    check_replaceable(parsed.output, mark='"decided_at_step"')
    replay = replay_run(parsed.run_dir, parsed.overrides)
    write(replay.text)
    if parsed.output:
        parsed.output.write_text(replay.to_jsonl(), encoding="utf-8")
    return 0


def add_explain(commands: Commands) -> None:
    """Add `versatune explain`."""
    command = add_run_command(
        commands,
        "explain",
        "Explain one decision of a run in words and numbers.",
        example="versatune explain runs/quickstart --step 100",
    )
    command.add_argument(
        "--step", type=int, metavar="N", help="explain the last decision made at or before step N (default: the newest)"
    )
    command.set_defaults(run=_explain)


def _explain(parsed: argparse.Namespace) -> int:
    from versatune_ds.training.run_records import explain_run

    write(explain_run(parsed.run_dir, step=parsed.step))
    return 0
