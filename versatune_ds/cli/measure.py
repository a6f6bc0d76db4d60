"""Subcommands that measure a model and plan before a run: detect, reference, plan."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys

from versatune_ds.cli.arguments import (
    FILE,
    NUMBER,
    Commands,
    add_command,
    add_nodes,
    add_recipe,
    check_can_write,
    check_shared_weights,
    comma_separated,
    on_machines,
    path_or_name,
    write,
)
from versatune_ds.paths import check_replaceable


def add_detect(commands: Commands) -> None:
    """Add `versatune detect`."""
    command = add_command(
        commands,
        "detect",
        _detect,
        example="versatune detect recipes/detect.yaml --processes 2 detect.num_sequences=2000",
        kept="what was drawn and measured is kept",
    )
    add_recipe(command)
    command.add_argument(
        "--processes", **NUMBER, help="processes that generate (default: one per GPU, or 1 without a GPU)"
    )
    command.add_argument(
        "--sharded",
        action="store_true",
        help="divide the weights of the model, and of one that labels, over the processes (ZeRO-3): for one that no "
        "single GPU holds",
    )
    add_nodes(command)
    command.add_argument(
        "--output",
        **FILE,
        help="prior.json to write, with a chart beside it (default: the recipe's mixture.prior, else "
        "runs/NAME-prior.json)",
    )
    command.add_argument(
        "--labelled",
        **FILE,
        help="JSON Lines of text and domain, from other sources than the recipe's rows, to measure the labeller on",
    )


def _detect(parsed: argparse.Namespace) -> int:
    """Estimate the share of each domain in the text that the base model generates, and write it as prior.json."""
    check_replaceable(parsed.output, mark='"weights"')
    check_can_write(parsed)
    check_shared_weights(parsed, default=None)
    return on_machines(parsed, lambda processes: _detect_here(parsed, processes=processes))


def _detect_here(parsed: argparse.Namespace, *, processes: int | None) -> int:
    """Detect with some processes, and write the tables to stdout."""
    from versatune_ds.knowledge.detect_recipe import detect_recipe

    with contextlib.redirect_stdout(sys.stderr):  # DeepSpeed prints while it reads; stdout is for the result
        text = detect_recipe(
            parsed.recipe,
            parsed.overrides,
            processes=processes,
            output=parsed.output,
            labelled=parsed.labelled,
            is_sharded=parsed.sharded,
        )
    write(text)
    return 0


def add_reference(commands: Commands) -> None:
    """Add `versatune reference`."""
    command = add_command(
        commands,
        "reference",
        _reference,
        example="versatune reference recipes/quickstart.yaml --processes 2 reference.steps=240",
        kept="domains measured so far are kept",
    )
    add_recipe(command)
    command.add_argument(
        "--score",
        type=path_or_name,
        metavar="MODEL",
        help="use the losses of this model (folder or Hub name), without training",
    )
    command.add_argument(
        "--domains",
        type=comma_separated,
        metavar="A,B",
        help="measure only these domains; the others keep their losses",
    )
    command.add_argument(
        "--output",
        **FILE,
        help="reference.json to write, transfer.json beside it (default: the recipe's mixture.reference, else "
        "runs/NAME-reference.json)",
    )
    command.add_argument("--fresh", action="store_true", help="measure again what has been measured already")
    command.add_argument("--processes", **NUMBER, help="processes to start (default: one per GPU, or 1 without a GPU)")
    command.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)  # launcher/reference.py adds it
    command.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it


def _reference(parsed: argparse.Namespace) -> int:
    """Measure each domain's reference loss: fine-tune on the domain alone, or score a given model."""
    check_replaceable(parsed.output, mark='"losses"')
    check_can_write(parsed)
    from versatune_ds.reference.command import ReferenceTask, launch_reference

    task = ReferenceTask(domains=parsed.domains, scored_model=parsed.score, output=parsed.output, is_fresh=parsed.fresh)
    if parsed.worker:
        from versatune_ds.reference.measure import run_reference_worker

        return run_reference_worker(parsed.recipe, parsed.overrides, task=task, is_quiet=parsed.quiet)
    return launch_reference(
        parsed.recipe, parsed.overrides, processes=parsed.processes, task=task, is_quiet=parsed.quiet
    )


def add_plan(commands: Commands) -> None:
    """Add `versatune plan`."""
    command = add_command(
        commands,
        "plan",
        _plan,
        example="versatune plan recipes/chain/versatune.yaml --for balanced --bound law=0,general=0.02",
    )
    add_recipe(command)
    command.add_argument(
        "--for",
        dest="purpose",
        choices=("mean", "balanced", "target"),
        default="balanced",
        help="mean: the lowest mean loss; balanced (default): the same, where no domain rises by more than the "
        "worst one does on equal shares; target: the largest gain of mixture.target, the others within their bounds",
    )
    command.add_argument(
        "--bound",
        action="append",
        default=[],
        metavar="A=X,B=Y",
        help="largest rise of a domain's loss as a share of the base model's, e.g. law=0,general=0.02; a negative one "
        "asks for a fall, e.g. law=-0.1",
    )
    command.add_argument(
        "--bound-all",
        type=float,
        metavar="X",
        help="the same for all other domains (default: none for mean, the largest rise on "
        "equal shares for balanced, 0.02 for target)",
    )
    command.add_argument(
        "--planner",
        metavar="NAME",
        help="how losses are predicted: transfer (default; from transfer.json alone), merge (MergeMix; runs averages "
        "of the kept models), mixmin (MixMin; mixes the kept models' token probabilities), dynamics (DynaMiCS; a "
        "linear response, to compare with)",
    )
    command.add_argument("--budget-steps", **NUMBER, help="steps of the run that is planned (default: train.steps)")
    command.add_argument(
        "--predictions",
        **NUMBER,
        default=96,
        help="largest number of mixtures that merge runs its models for (default: 96)",
    )
    command.add_argument(
        "--transfer", **FILE, help="transfer.json to read (default: where versatune reference writes it)"
    )
    command.add_argument(
        "--output",
        **FILE,
        help="plan.json to write, with a picture (.png) beside it (default: runs/NAME-plan.json, NAME being run.name; "
        "a later plan of the recipe replaces it)",
    )
    command.add_argument("--json", action="store_true", help="print the content of plan.json instead of tables")


def _plan(parsed: argparse.Namespace) -> int:
    """Plan the mixture before training, from what each domain alone does to the others, and write it as plan.json."""
    check_replaceable(parsed.output, mark='"weights"')
    check_can_write(parsed)
    from versatune_ds.planning.plan_command import PlanOptions, plan_recipe
    from versatune_ds.planning.planners import DEFAULT

    options = PlanOptions(
        purpose=parsed.purpose,
        bounds=tuple(parsed.bound),
        bound_all=parsed.bound_all,
        planner=parsed.planner or DEFAULT,
        num_steps=parsed.budget_steps,
        num_predictions=parsed.predictions,
        transfer=parsed.transfer,
        output=parsed.output,
    )
    with contextlib.redirect_stdout(sys.stderr):  # libraries of planners that run models print
        plan, text = plan_recipe(parsed.recipe, parsed.overrides, options=options)
    write(json.dumps(plan.to_dict(), indent=1) if parsed.json else text)
    return 0
