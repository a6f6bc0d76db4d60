"""Predict the drawn fixed mixtures with the planners of a comparison's plans, to set beside what was measured."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from versatune_ds.comparison.cells import Cell
from versatune_ds.comparison.override_texts import texts
from versatune_ds.comparison.plan import ComparisonPlan
from versatune_ds.comparison.start_files import transfer_file
from versatune_ds.config import load_config
from versatune_ds.mixture.planning.transfer_reader import read_transfer
from versatune_ds.planning.plan_inputs import plan_task
from versatune_ds.planning.planners import DEFAULT, planner_named
from versatune_ds.training.length.run_length import with_prepared_length

logger = logging.getLogger(__name__)


def predicted_means(
    plan: ComparisonPlan, cells: Sequence[Cell], *, start: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Return, by planner, label and predicted mean loss of every drawn mixture; empty without plans or mixtures.

    A planner that runs models is left out: it would need a device of its own.

    Args:
        plan: The comparison.
        cells: Its runs.
        start: `key=value` texts of the starting point.
    """
    mixtures = {cell.label: dict(cell.mixture) for cell in cells if cell.mixture is not None}
    if not plan.plans or not mixtures:
        return {}
    config = load_config(plan.recipe, [*texts(plan.set), *start])
    if any(keys.budget_steps is None for keys in plan.plans.values()):
        config = with_prepared_length(config)
    path = transfer_file(plan)
    table = read_transfer(path)
    weights_NK = np.array([[weights[name] for name in table.domain_set] for weights in mixtures.values()])
    predicted = {}
    asked = {(keys.planner or DEFAULT, keys.budget_steps or config.train.steps) for keys in plan.plans.values()}
    for name, num_steps in sorted(asked):
        planner = planner_named(name)
        if planner.needs != "transfer":
            logger.info("planner %s: it runs models, so the drawn mixtures are not predicted with it", name)
            continue
        task = plan_task(config, table, path=path, num_steps=num_steps)
        means_N = np.nanmean(planner.make(task).predict(weights_NK).losses_NK, axis=1)
        title = f"{name}, {num_steps} steps"
        predicted[title] = dict(zip(mixtures, means_N.tolist(), strict=True))
    return predicted
