"""What a plan is made from: a recipe and a transfer table, checked against each other.

Shape legend: **K** domains.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from versatune_ds.config import RunConfig
from versatune_ds.data.sources.domain_files import domain_names
from versatune_ds.mixture.planning.limits import Limits
from versatune_ds.mixture.planning.plan_file import is_plan_file
from versatune_ds.mixture.planning.predictor import PlanTask
from versatune_ds.mixture.planning.transfer_table import TransferTable
from versatune_ds.mixture.policies.simplex import equal_weights, normalise
from versatune_ds.mixture.settings import floor_and_cap, prior_weights

logger = logging.getLogger(__name__)

_MOST_TIMES_MEASURED = 3.0
"""Tokens of a planned run by those of the longest measured one above which its losses are extrapolated. By default
references are half as long as the run."""


def check_unit(config: RunConfig) -> None:
    """Raise ValueError if the weights of a run would be shares of examples: a plan predicts from tokens."""
    if config.mixture.weight_unit == "examples":
        raise ValueError(
            "mixture.weight_unit: examples: a plan's weights are shares of tokens; set mixture.weight_unit=tokens for "
            "the run too"
        )


def check_table(config: RunConfig, table: TransferTable, *, path: Path) -> None:
    """Check that a table is of the recipe's domains, and warn if it is of another model.

    Raises:
        ValueError: If the domains differ; one line.
    """
    names = domain_names(config.data, cache_dir=config.cache_dir)
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


def extrapolation_warning(task: PlanTask, *, path: Path) -> str | None:
    """Return a warning where the planned run is much longer than any that was measured; None where it is not."""
    longest = max((float(source.tokens_S[-1]) for source in task.table.sources.values()), default=0.0)
    if longest == 0.0 or task.num_tokens <= _MOST_TIMES_MEASURED * longest:
        return None
    times = task.num_tokens / longest
    return (
        f"{path}: measured over {longest:,.0f} tokens a domain, planned for {task.num_tokens:,.0f}, {times:.0f} times "
        "as many: the losses are extrapolated and not to be trusted; measure longer with this recipe (versatune "
        "reference, reference.steps), or plan a shorter run (--budget-steps)"
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
