"""Report where a plan's gain over equal shares is within the error of its own prediction.

Shape legend: **K** domains.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from versatune_ds.mixture.planning.goal import Goal
from versatune_ds.mixture.planning.predictor import Predicted
from versatune_ds.mixture.planning.search import Found

_NOISE = 2.0
"""Standard errors within which a gain may be chance."""


def gain_note(found: Found, goal: Goal) -> Iterator[str]:
    """Yield that the gain over equal shares is within its own error; nothing where it is beyond it, or there is none.

    The gain is that of the purpose: of the mean loss, or of the target's loss.
    """
    uniform = found.mixtures.predicted_at(np.array([found.named["uniform"]]))
    gain = float((goal.objective(uniform) - goal.objective(found.predicted))[0])
    error = objective_error(goal, found.predicted)
    if not 0 < gain <= _NOISE * error:
        return
    scale = 1.0 if goal.target_id is not None else float(np.nanmean(goal.base_losses_K))
    what = "target's loss" if goal.target_id is not None else "mean loss"
    yield (
        f"The plan's gain over equal shares is within its own error: {100 * gain / scale:.1f} % of the {what}, with a "
        f"standard error of {100 * error / scale:.1f} %. Equal shares may do as well; more held-out rows, or longer "
        "runs of versatune reference, would show whether they do."
    )


def objective_error(goal: Goal, predicted: Predicted) -> float:
    """Return the standard error of what a plan makes small, for one mixture, in the unit of `Goal.objective`.

    Approximate: the errors of domains are taken as independent. Example: errors of .03 and .04 nats of two domains give
    .025 for their mean.
    """
    errors_K = predicted.stderrs_NK[0]
    if goal.target_id is not None:
        return float(errors_K[goal.target_id] / goal.base_losses_K[goal.target_id])
    return float(np.sqrt(np.nansum(errors_K**2)) / np.isfinite(errors_K).sum())
