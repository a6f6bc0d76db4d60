"""Run `versatune plan`: read transfer.json, search the mixture that serves a purpose best, write plan.json.

Nothing is trained. The planners `transfer` and `dynamics` read the table alone, and torch is not even imported; `merge`
and `mixmin` run the models that `versatune reference` kept over the held-out rows.

Shape legend: **K** domains.
"""

from __future__ import annotations

import itertools
import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from versatune_ds.config import RunConfig
from versatune_ds.config.load import Recipe
from versatune_ds.mixture.planning.front import fill_front
from versatune_ds.mixture.planning.goal import Goal, Purpose, goal_of, worst_rise
from versatune_ds.mixture.planning.limits import Limits
from versatune_ds.mixture.planning.plan_file import Plan
from versatune_ds.mixture.planning.predictor import Planner, Predictor
from versatune_ds.mixture.planning.search import Found, search
from versatune_ds.mixture.planning.transfer_reader import read_transfer
from versatune_ds.mixture.planning.transfer_table import TransferTable
from versatune_ds.mixture.policies.simplex import equal_weights
from versatune_ds.planning.plan_content import make_plan, plan_provenance
from versatune_ds.planning.plan_inputs import (
    check_table,
    check_unit,
    extrapolation_warning,
    named_mixtures,
    plan_limits,
    plan_task,
)
from versatune_ds.planning.plan_picture import draw_plan
from versatune_ds.planning.plan_text import Shown, plan_text
from versatune_ds.planning.planners import DEFAULT, planner_named
from versatune_ds.reference.transfer_file import transfer_path
from versatune_ds.run_folder.atomic import write_json
from versatune_ds.training.saved_model import load_recipe

logger = logging.getLogger(__name__)

NUM_PREDICTIONS = 96
"""Predictions of a planner that runs models, by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """Options of `versatune plan`."""

    purpose: Purpose = "balanced"
    bounds: tuple[str, ...] = ()
    """Texts `domain=bound,domain=bound`."""
    bound_all: float | None = None
    planner: str = DEFAULT
    num_steps: int | None = None
    """Optimizer steps of the planned run; None takes `train.steps`."""
    num_predictions: int = NUM_PREDICTIONS
    transfer: Path | None = None
    """None takes the file that `versatune reference` writes."""
    output: Path | None = None
    """None means NAME-plan.json in the folder of the runs."""

    def __post_init__(self) -> None:
        """Check the values; raise ValueError with the option."""
        if self.num_steps is not None and self.num_steps < 1:
            raise ValueError(f"--budget-steps {self.num_steps}: expected 1 or more")
        if self.output is not None and self.output.suffix != ".json":
            raise ValueError(f"--output: {self.output}: expected a file that ends in .json")


def plan_recipe(recipe: Recipe, overrides: Sequence[str], *, options: PlanOptions) -> tuple[Plan, str]:
    """Plan a recipe's mixture, write plan.json and its picture; return the plan and what to show.

    Args:
        recipe: YAML file, its content, or a config.
        overrides: `key=value` texts.
        options: What to plan for.

    Raises:
        ValueError: If the recipe, an option or transfer.json is not as expected; one line.
    """
    # What is asked for.
    config = load_recipe(recipe, overrides)
    planner = planner_named(options.planner)
    check_unit(config)
    path = options.transfer or transfer_path(config.default_output("reference"))
    if options.transfer is None and not path.exists():
        raise ValueError(
            f"{path}: no such file; measure it first with `{reference_command(recipe, overrides)}`, or give another "
            "one with --transfer FILE"
        )
    table = read_transfer(path)
    check_table(config, table, path=path)
    # What it depends on, and the search.
    if config.train.epochs is not None and (options.num_steps is None or planner.needs != "transfer"):
        from versatune_ds.training.length.run_length import with_prepared_length  # imports torch

        config = with_prepared_length(config)
    task = plan_task(config, table, path=path, num_steps=options.num_steps or config.train.steps)
    if warning := extrapolation_warning(task, path=path):
        logger.warning("%s", warning)
    named = named_mixtures(config, table)
    limits = plan_limits(config, table, named)
    predictor = planner.make(task)
    goal = goal_of(
        options.purpose,
        domain_set=table.domain_set,
        base_losses_K=table.base_losses_K,
        target=config.mixture.target,
        bound_all=_bound_all(options, predictor, table),
        bounds=parse_bounds(options.bounds),
    )
    found = _search(planner, predictor, goal, limits=limits, named=named, options=options, seed=config.run.seed)
    # Write and show.
    plan = make_plan(
        found, goal, planner=planner, predictor=predictor, task=task, limits=limits,
        provenance=plan_provenance(config, table, path=path, found=found, goal=goal, limits=limits),
    )  # fmt: skip
    output = options.output or config.run.output_dir / f"{config.run.name}-plan.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, plan.to_dict())
    chart = draw_plan(plan, table, output.with_suffix(".png"))
    shown = Shown(plan=plan, table=table, found=found, goal=goal, limits=limits, planner=planner)
    following = next_command(recipe, overrides, config=config, plan=plan, output=output)
    return plan, f"{plan_text(shown)}\n\nplan   {output}\nchart  {chart}\nnext   {following}"


def _search(
    planner: Planner,
    predictor: Predictor,
    goal: Goal,
    *,
    limits: Limits,
    named: Mapping[str, np.ndarray],
    options: PlanOptions,
    seed: int,
) -> Found:
    """Return the best mixture and all that were predicted, with the front filled where predictions are cheap."""
    num_elsewhere = _predictions_elsewhere(options, predictor, num_domains=len(limits.lower_K))
    found = search(
        predictor,
        goal,
        limits=limits,
        named=named,
        seed=seed,
        num_predictions=options.num_predictions - num_elsewhere,
        num_elsewhere=num_elsewhere,
        solution_K=None if planner.solve is None else planner.solve(predictor, goal, limits),
    )
    if not predictor.is_costly:
        fill_front(predictor, goal, found.mixtures, limits=limits)
    return found


def _bound_all(options: PlanOptions, predictor: Predictor, table: TransferTable) -> float | None:
    """Return the bound of all domains: as given, None for the purpose's, or for `balanced` that of equal shares.

    So a balanced plan is predicted to be better than equal shares in the mean, and no worse in the worst domain.
    """
    if not _is_bound_by_equal_shares(options):
        return options.bound_all
    equal_K = equal_weights(len(table.domain_set))
    worst_id, rise = worst_rise(predictor.predict(equal_K[None]).losses_NK[0], table.base_losses_K)
    name = table.domain_set.names[worst_id]
    if rise > 0:
        logger.info("balanced: no domain may rise by more than %s does on equal shares, %.1f %%", name, 100 * rise)
    else:
        logger.info("balanced: no domain may end above the base model's loss, as none does on equal shares")
    return rise


def parse_bounds(texts: Sequence[str]) -> dict[str, float]:
    """Return the bounds in texts such as `law=0,general=0.02`.

    Raises:
        ValueError: If one has another form.
    """
    bounds: dict[str, float] = {}
    for text in (part for whole in texts for part in whole.split(",")):
        name, _, number = text.rpartition("=")
        try:
            bounds[name] = float(number)
        except ValueError:
            name = ""
        if not name or not np.isfinite(bounds[name]):
            raise ValueError(
                f"--bound {text}: expected DOMAIN=NUMBER, the largest rise of its loss as a share of the base model's, "
                "such as law=0 or general=0.02"
            )
    return bounds


def _predictions_elsewhere(options: PlanOptions, predictor: Predictor, *, num_domains: int) -> int:
    """Return how many predictions of a costly planner the search does not make: of equal shares, and each effect."""
    if not predictor.is_costly:
        return 0
    return int(_is_bound_by_equal_shares(options)) + (num_domains + 1 if num_domains > 1 else 0)


def _is_bound_by_equal_shares(options: PlanOptions) -> bool:
    return options.purpose == "balanced" and options.bound_all is None


def next_command(recipe: Recipe, overrides: Sequence[str], *, config: RunConfig, plan: Plan, output: Path) -> str:
    """Return the command that trains on a plan; RECIPE where the recipe is no file.

    A policy that gives a target a share of its own would otherwise replace the plan's. Where the recipe's run exists,
    the command names another one: it would otherwise resume that run, with another mixture than it started with.
    """
    words = ["versatune", "train", _recipe_word(recipe), *_without_plan(overrides), f"mixture.prior={output}"]
    target = config.mixture.target
    if target is not None and config.mixture.has_target and config.mixture.rule.has_given_target_share:
        words.append(f"mixture.target_share={plan.weights[target]:.6g}")
    if config.run_dir.exists():
        words = [word for word in words if not word.startswith("run.name=")]
        words.append(f"run.name={_free_name(config)}")
    return shlex.join(words)


def _free_name(config: RunConfig) -> str:
    """Return the run's name with an ending under which there is no run."""
    endings = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
    names = (f"{config.run.name}-planned{ending}" for ending in endings)
    return next(name for name in names if not (config.run.output_dir / name).exists())


def reference_command(recipe: Recipe, overrides: Sequence[str]) -> str:
    """Return the command that measures a recipe's transfer table; RECIPE where the recipe is no file."""
    return shlex.join(["versatune", "reference", _recipe_word(recipe), *_without_plan(overrides)])


def _recipe_word(recipe: Recipe) -> str:
    return str(recipe) if isinstance(recipe, str | Path) else "RECIPE"


def _without_plan(overrides: Sequence[str]) -> list[str]:
    """Return the overrides without those that use an earlier plan."""
    return [text for text in overrides if not text.startswith(("mixture.prior=", "mixture.target_share="))]
