"""The track of a plan: the losses that it predicts on the way to its end.

A run that is a quarter through its learning-rate schedule is compared with reference runs that were a quarter through
theirs. So the same predictor is made again from the table as it was at that fraction of every run.

Shape legend: **K** domains.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from versatune_ds.mixture.planning.predictor import Planner, PlanTask, Predicted

FRACTIONS = (0.25, 0.5, 0.75)
"""Points of the run, as shares of its steps, besides its begin and its end."""


def predicted_track(
    planner: Planner, task: PlanTask, *, weights_K: np.ndarray, end: Predicted
) -> dict[float, tuple[np.ndarray, np.ndarray]]:
    """Return losses and standard errors, each [K], by fraction of the run; empty if the planner predicts only its end.

    Args:
        planner: What predicts.
        task: The run that is planned.
        weights_K: The mixture of the plan.
        end: What the plan predicts for its end.
    """
    if not planner.predicts_earlier:
        return {}
    base_K = task.table.base_losses_K
    track = {0.0: (base_K, np.where(np.isnan(base_K), np.nan, 0.0))}
    for fraction in FRACTIONS:
        earlier = replace(task, table=task.table.until(fraction), num_tokens=fraction * task.num_tokens)
        predicted = planner.make(earlier).predict(weights_K[None])
        track[fraction] = (predicted.losses_NK[0], predicted.stderrs_NK[0])
    return track | {1.0: (end.losses_NK[0], end.stderrs_NK[0])}
