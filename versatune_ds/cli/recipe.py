"""Subcommands that look at a recipe or its data without training: check, keys, prepare, inspect and simulate."""

from __future__ import annotations

import argparse
import os
import sys

from versatune_ds.cli.arguments import (
    FILE,
    NUMBER,
    Commands,
    add_command,
    add_recipe,
    check_can_write,
    path_argument,
    write,
)
from versatune_ds.paths import check_replaceable


def add_check(commands: Commands) -> None:
    """Add `versatune check`."""
    command = add_command(
        commands,
        "check",
        _check,
        example="versatune check recipes/quickstart.yaml --nodes 2 --gpus-per-node 4 --gpu-memory 80",
    )
    add_recipe(command)
    command.add_argument("--nodes", **NUMBER, help="number of machines (default: 1)")
    command.add_argument(
        "--gpus-per-node",
        type=int,
        metavar="M",
        help="processes per machine (default: one per GPU here, or 1 without a GPU)",
    )
    command.add_argument(
        "--gpu-memory", type=float, metavar="GIB", help="memory of one GPU in GiB (default: this machine's)"
    )
    command.add_argument(
        "--render",
        action="store_true",
        help="print the complete training text of one conversation per domain, and the prompt that generation would "
        "see for it",
    )
    command.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def _check(parsed: argparse.Namespace) -> int:
    """Check that a recipe would run, without starting it: files, examples, batches, memory, disk, ..."""
    from versatune_ds.preflight import CheckRequest, check_recipe
    from versatune_ds.training.saved_model import load_recipe

    request = CheckRequest(
        nodes=parsed.nodes,
        gpus_per_node=parsed.gpus_per_node,
        gpu_memory_gib=parsed.gpu_memory,
        environ=os.environ,
        renders_prompts=parsed.render,
    )
    report = check_recipe(load_recipe(parsed.recipe, parsed.overrides), request)
    is_coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    write(report.as_json() if parsed.json else report.as_text(is_coloured=is_coloured))
    return report.exit_code


def add_keys(commands: Commands) -> None:
    """Add `versatune keys`."""
    command = add_command(commands, "keys", _keys, example="versatune keys per_device_train_batch_size")
    command.add_argument(
        "pattern",
        nargs="?",
        default="",
        help="a section, text to find in a key's name or meaning (* matches anything), or the name that transformers, "
        "TRL, LLaMA-Factory or Axolotl have for a setting",
    )
    command.add_argument("--markdown", action="store_true", help="print the content of docs/keys.md")


def _keys(parsed: argparse.Namespace) -> int:
    """List the keys of a recipe with type, default and meaning."""
    from versatune_ds.config.keys import (
        answer_of_foreign_name,
        keys_as_markdown,
        keys_as_text,
        nearest_key,
        recipe_keys,
    )

    keys, answer = recipe_keys(parsed.pattern), answer_of_foreign_name(parsed.pattern)
    if answer is not None and not keys:
        raise ValueError(answer)
    if answer is not None and not parsed.markdown:
        write(answer)
    if not keys:
        nearest = nearest_key(parsed.pattern)
        hint = "" if nearest is None else f"did you mean {nearest}? "
        raise ValueError(f"{parsed.pattern!r}: no recipe key matches; {hint}`versatune keys` lists all")
    write(keys_as_markdown(keys).rstrip() if parsed.markdown else keys_as_text(keys))
    return 0


def add_prepare(commands: Commands) -> None:
    """Add `versatune prepare`."""
    command = add_command(
        commands,
        "prepare",
        _prepare,
        example="versatune prepare recipes/six_domains.yaml data.folder=my_data",
        kept="domains prepared so far are kept",
    )
    add_recipe(command)


def _prepare(parsed: argparse.Namespace) -> int:
    """Tokenise a recipe's data and print the counts of each domain."""
    check_can_write(parsed)
    from versatune_ds.training.prepared_data import prepare_recipe
    from versatune_ds.training.saved_model import load_recipe

    prepare_recipe(load_recipe(parsed.recipe, parsed.overrides))
    return 0


def add_inspect(commands: Commands) -> None:
    """Add `versatune inspect`."""
    command = add_command(
        commands, "inspect", _inspect, example="versatune inspect recipes/quickstart.yaml --steps 0:20 --world-size 4"
    )
    add_recipe(command)
    command.add_argument(
        "--steps",
        required=True,
        metavar="AFTER:LAST",
        help="steps after AFTER up to LAST, e.g. 0:20 for the first 20 steps",
    )
    command.add_argument("--world-size", **NUMBER, help="also print which rank reads each row when N processes train")
    command.add_argument(
        "--resume-at",
        type=int,
        metavar="S",
        help="save and restore the position in the data after step S; no row may change",
    )
    command.add_argument(
        "--run",
        type=path_argument,
        dest="run_dir",
        metavar="RUN",
        help="use the weights that this run decided (default: the weights of step 0 throughout)",
    )
    command.add_argument(
        "--text", action="store_true", help="print rows as the model reads them, with text without loss in brackets"
    )


def _inspect(parsed: argparse.Namespace) -> int:
    """Print the packed rows that training reads, as JSON lines or as text."""
    from versatune_ds.preflight.inspect_recipe import Inspection, StepRange, inspect_as_json, inspect_as_text
    from versatune_ds.training.saved_model import load_recipe

    inspection = Inspection(
        steps=StepRange.parse(parsed.steps),
        world_size=parsed.world_size,
        resume_at=parsed.resume_at,
        run_dir=parsed.run_dir,
    )
    show = inspect_as_text if parsed.text else inspect_as_json
    for line in show(load_recipe(parsed.recipe, parsed.overrides), inspection):
        write(line)
    return 0


def add_simulate(commands: Commands) -> None:
    """Add `versatune simulate`."""
    command = add_command(
        commands,
        "simulate",
        _simulate,
        example="versatune simulate recipes/quickstart.yaml --sweep mixture.steer.anchor=0,0.5,1",
    )
    add_recipe(command)
    command.add_argument(
        "--losses",
        **FILE,
        help='JSON lines {"update", "step", "losses": {domain: nats}}, or a decisions.jsonl (default: synthetic)',
    )
    command.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="KEY=A,B,...",
        help="compare values of a key, e.g. mixture.sigma=0.1,0.3,1; repeat it for combinations of keys",
    )
    command.add_argument("--steps", **NUMBER, help="steps of the synthetic run (default: train.steps)")
    command.add_argument(
        "--noise", type=float, default=0.0, help="relative error of a measured change, e.g. 0.004 (default: 0)"
    )
    command.add_argument("--seed", type=int, default=0, help="seed of the synthetic learner (default: 0)")
    command.add_argument("--output", **FILE, help="write the decisions, in the format of decisions.jsonl")
    command.add_argument("--plot", **FILE, help="plot weights, losses, potential and forgetting")


def _simulate(parsed: argparse.Namespace) -> int:
    """Run the controller without training, on a synthetic learner or on recorded losses."""
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
