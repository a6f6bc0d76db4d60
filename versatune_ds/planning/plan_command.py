"""Run `versatune plan`: read transfer.json, search the mixture that serves a purpose best, write plan.json.

Nothing is trained. The planners `transfer` and `dynamics` read the table alone, and torch is not even imported; `merge`
and `mixmin` run the models that `versatune reference` kept over the held-out rows.

Shape legend: **N** mixtures, **K** domains.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from versatune_ds.config import RunConfig
from versatune_ds.config.load import Recipe
from versatune_ds.data.sources.domain_files import domain_names
from versatune_ds.mixture.planning.front import fill_front
from versatune_ds.mixture.planning.goal import Purpose, goal_of, worst_rise
from versatune_ds.mixture.planning.limits import Limits
from versatune_ds.mixture.planning.plan_file import Plan, is_plan_file
from versatune_ds.mixture.planning.predictor import PlanTask, Predictor
from versatune_ds.mixture.planning.search import search
from versatune_ds.mixture.planning.transfer_reader import read_transfer
from versatune_ds.mixture.planning.transfer_table import TransferTable
from versatune_ds.mixture.policies.simplex import equal_weights, normalise
from versatune_ds.mixture.settings import floor_and_cap, prior_weights
from versatune_ds.planning.plan_content import make_plan, plan_provenance
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

    purpose: Purpose = "mean"
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
    _check_unit(config)
    path = options.transfer or transfer_path(config.default_output("reference"))
    if options.transfer is None and not path.exists():
        raise ValueError(
            f"{path}: no such file; measure it first with `{reference_command(recipe, overrides)}`, or give another "
            "one with --transfer FILE"
        )
    table = read_transfer(path)
    _check_table(config, table, path=path)
    task = plan_task(config, table, path=path, num_steps=options.num_steps or config.train.steps)
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
    solution_K = None if planner.solve is None else planner.solve(predictor, goal, limits)
    found = search(
        predictor,
        goal,
        limits=limits,
        named=named,
        seed=config.run.seed,
        num_predictions=_predictions_of_search(options.num_predictions, predictor, table),
        solution_K=solution_K,
    )
    if not predictor.is_costly:
        fill_front(predictor, goal, found.mixtures, limits=limits)
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


def _bound_all(options: PlanOptions, predictor: Predictor, table: TransferTable) -> float | None:
    """Return the bound of all domains: as given, None for the purpose's, or for `balanced` that of equal shares.

    So a balanced plan is predicted to be better than equal shares in the mean, and no worse in the worst domain.
    """
    if options.purpose != "balanced" or options.bound_all is not None:
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


def _check_unit(config: RunConfig) -> None:
    if config.mixture.weight_unit == "examples":
        raise ValueError(
            "mixture.weight_unit: examples: a plan's weights are shares of tokens; set mixture.weight_unit=tokens for "
            "the run too"
        )


def _check_table(config: RunConfig, table: TransferTable, *, path: Path) -> None:
    """Check that a table is of the recipe's domains, and warn if it is of another model."""
    names = domain_names(config.data)
    if names is not None and set(names) != set(table.domain_set):
        raise ValueError(
            f"{path}: its domains are {', '.join(table.domain_set)}, the recipe's {', '.join(names)}; run versatune "
            "reference with this recipe"
        )
    model = (config.reference.model or config.model).model_dump(mode="json", exclude_none=True)
    if table.provenance.get("model") not in (None, model):
        logger.warning("%s was measured with another model than the recipe's; its predictions may not fit", path)


def plan_task(config: RunConfig, table: TransferTable, *, path: Path, num_steps: int) -> PlanTask:
    """Return what the plan is for, with rows filled as in the runs of the table."""
    num_tokens = float(num_steps * config.train.rows_per_batch * config.data.row_tokens)
    settings = table.provenance.get("settings")
    sizes = [settings.get(key) for key in ("rows_per_batch", "row_tokens")] if isinstance(settings, Mapping) else []
    steps = sum(int(source.steps_S[-1]) for source in table.sources.values())
    if steps and len(sizes) == 2 and all(isinstance(size, int) and size > 0 for size in sizes):
        tokens = sum(int(source.tokens_S[-1]) for source in table.sources.values())
        num_tokens *= min(tokens / (steps * sizes[0] * sizes[1]), 1.0)
    return PlanTask(
        table=table,
        num_steps=num_steps,
        num_tokens=num_tokens,
        folder=path.parent,
        seed=config.run.seed,
        config=config,
    )


def named_mixtures(config: RunConfig, table: TransferTable) -> dict[str, np.ndarray]:
    """Return the mixtures that a plan is shown beside: uniform, and the prior and proportional where known."""
    named = {"uniform": equal_weights(len(table.domain_set))}
    sizes_K = _sizes(table)
    prior = config.mixture.prior
    if isinstance(prior, Path) and not prior.is_file():
        logger.info("mixture.prior: %s: no such file; the plan is shown without the prior", prior)
    elif isinstance(prior, Path) and is_plan_file(prior):
        logger.info("mixture.prior: %s is a plan itself; this one is shown without the prior", prior)
    elif prior != "proportional" or sizes_K is not None:
        named["prior"] = prior_weights(config.mixture, domain_set=table.domain_set, sizes_K=sizes_K)
    if sizes_K is not None:
        named["proportional"] = normalise(sizes_K)
    return named


def _sizes(table: TransferTable) -> np.ndarray | None:
    """Return the tokens of one pass over each domain [K]; None where a domain was not trained on alone."""
    if set(table.sources) != set(table.domain_set):
        return None
    return np.array([table.sources[name].tokens_per_epoch for name in table.domain_set], dtype=np.float64)


def plan_limits(config: RunConfig, table: TransferTable, named: Mapping[str, np.ndarray]) -> Limits:
    """Return floor and cap of every domain; one that was not trained on alone keeps its share of the prior.

    Nothing is known of what more or less of such a domain would do.
    """
    num_domains = len(table.domain_set)
    floor, cap = floor_and_cap(config.mixture, num_domains=num_domains)
    lower_K, upper_K = np.full(num_domains, floor), np.full(num_domains, cap)
    unknown = [name for name in table.domain_set if name not in table.sources]
    if unknown:
        label = "prior" if "prior" in named else "uniform"
        logger.warning("no run on %s alone: they keep their share of the %s mixture", ", ".join(unknown), label)
        for name in unknown:
            k = table.domain_set.id_of(name)
            lower_K[k] = upper_K[k] = np.clip(named[label][k], floor, cap)
    return Limits(lower_K=lower_K, upper_K=upper_K)


def _predictions_of_search(num_predictions: int, predictor: Predictor, table: TransferTable) -> int:
    """Return how many predictions the search may make; the effect of each domain costs a few more afterwards."""
    num_domains = len(table.domain_set)
    return num_predictions - (num_domains + 1 if predictor.is_costly and num_domains > 1 else 0)


def next_command(recipe: Recipe, overrides: Sequence[str], *, config: RunConfig, plan: Plan, output: Path) -> str:
    """Return the command that trains on a plan; RECIPE where the recipe is no file.

    A policy that gives a target a share of its own would otherwise replace the plan's.
    """
    words = ["versatune", "train", _recipe_word(recipe), *_without_plan(overrides), f"mixture.prior={output}"]
    target = config.mixture.target
    if target is not None and config.mixture.has_target and config.mixture.rule.has_given_target_share:
        words.append(f"mixture.target_share={plan.weights[target]:.6g}")
    return shlex.join(words)


def reference_command(recipe: Recipe, overrides: Sequence[str]) -> str:
    """Return the command that measures a recipe's transfer table; RECIPE where the recipe is no file."""
    return shlex.join(["versatune", "reference", _recipe_word(recipe), *_without_plan(overrides)])


def _recipe_word(recipe: Recipe) -> str:
    return str(recipe) if isinstance(recipe, str | Path) else "RECIPE"


def _without_plan(overrides: Sequence[str]) -> list[str]:
    """Return the overrides without those that use an earlier plan."""
    return [text for text in overrides if not text.startswith(("mixture.prior=", "mixture.target_share="))]
