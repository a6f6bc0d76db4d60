"""The planner `dynamics`: a linear response, measured by short runs on each domain alone, and a linear programme.

    l_j = base_j + h sum_i w_i S_ij,    S_ij = change of l_j per token of domain i

The probing runs are the runs on single domains up to their first measurement, and the loss is predicted after h tokens,
the length of the shortest of them: a slope is local, so it says nothing of the rest of the run. The best mixture under
bounds is the solution of a linear programme on the simplex, found exactly.

Source: DynaMiCS (arXiv 2605.10770), abstract: short runs on each domain give a matrix of slopes; weights on the simplex
lower the losses of the targets most while those of the constrained domains stay below reference levels.
Differences from the paper: it measures the slopes again at every update of the weights, here they are measured once, on
the base model. The abstract does not give the programme's exact form, nor what it does where no mixture keeps all
bounds; here that is the mixture whose worst domain is least beyond its bound, as with the other planners.

Shape legend: **K** domains, **N** mixtures.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.optimize import linprog

from versatune_ds.mixture.planning.goal import Goal
from versatune_ds.mixture.planning.limits import Limits
from versatune_ds.mixture.planning.predictor import Planner, PlanTask, Predicted

logger = logging.getLogger(__name__)


class DynamicsPredictor:
    """Predict the losses after one probe by the formula at the top of this module.

    Args:
        task: What is planned; only its table is read.

    Raises:
        ValueError: If a domain was not trained on alone, or a run has one measurement.
    """

    is_costly = False

    def __init__(self, task: PlanTask) -> None:
        table = task.table
        table.check_is_complete()
        K = len(table.domain_set)
        tokens_K, changes_KK, stderrs_KK = np.full(K, np.inf), np.zeros((K, K)), np.zeros((K, K))
        for name, source in table.sources.items():
            i = table.domain_set.id_of(name)
            if len(source.steps_S) < 2 or source.tokens_S[1] == 0:
                raise ValueError(
                    f"transfer table: sources.{name}: expected a measurement after the first step; write it again with "
                    "versatune reference"
                )
            tokens_K[i] = float(source.tokens_S[1])
            changes_KK[i], stderrs_KK[i] = source.changes_SK[1], source.change_stderrs_SK[1]
        self._horizon = float(tokens_K.min())
        scale_K1 = (self._horizon / tokens_K)[:, None]
        is_measured_K = table.is_measured() & np.isfinite(table.base_losses_K)
        self._base_K = np.where(is_measured_K, table.base_losses_K, np.nan)
        self.changes_KK = np.where(is_measured_K, np.nan_to_num(changes_KK * scale_K1), np.nan)
        """Change of each loss (columns) after the horizon's tokens of each domain (rows), in nats."""
        self._stderrs_KK = np.where(is_measured_K, np.nan_to_num(stderrs_KK * scale_K1), np.nan)
        logger.info(
            "planner dynamics: slopes up to the first measurement; losses are predicted after %d tokens, not after the "
            "run's %d",
            self._horizon,
            task.num_tokens,
        )

    @property
    def calibration(self) -> Mapping[str, Any]:
        """Return after how many tokens losses are predicted; nothing is calibrated."""
        return {"horizon_tokens": self._horizon}

    def predict(self, weights_NK: np.ndarray) -> Predicted:
        """Predict the losses of N mixtures after the horizon; the errors are those of the measurements alone."""
        losses_NK = self._base_K + weights_NK @ self.changes_KK
        stderrs_NK = np.sqrt(weights_NK**2 @ self._stderrs_KK**2)
        return Predicted(losses_NK=losses_NK, stderrs_NK=stderrs_NK)


def solve_programme(predictor: DynamicsPredictor, goal: Goal, limits: Limits) -> np.ndarray:
    """Return the best mixture within the limits [K], exactly.

    Example: law changes by -.2 with rows of its own and by +.1 with those of code. A bound of 0 asks for
    -.2 w + .1 (1 - w) <= 0, so w is at least 1/3.

    Args:
        predictor: Its changes are linear in the weights.
        goal: Purpose and bounds. Where no mixture meets the bounds, the worst excess is made smallest first.
        limits: Smallest and largest weights.
    """
    relative_KK = predictor.changes_KK / goal.base_losses_K
    is_measured_K = ~np.isnan(goal.base_losses_K)
    is_bounded_K = np.isfinite(goal.bounds_K) & is_measured_K
    if goal.target_id is not None:
        cost_K = relative_KK[:, goal.target_id]
    else:
        cost_K = predictor.changes_KK[:, is_measured_K].mean(axis=1)

    # One row a bound: the changes of a domain's loss by the rows of every domain.
    rows_JK, bounds_J = relative_KK[:, is_bounded_K].T, goal.bounds_K[is_bounded_K]
    safest_K, excess = _least_excess(rows_JK, bounds_J, limits)
    best_K = _minimise(cost_K, rows_JK, bounds_J + excess, limits)
    best_K = np.maximum(safest_K if best_K is None else best_K, 0.0)
    return limits.nearest(best_K[None] / best_K.sum())[0]


def _least_excess(rows_JK: np.ndarray, bounds_J: np.ndarray, limits: Limits) -> tuple[np.ndarray, float]:
    """Return the mixture whose worst excess over its bounds is smallest, and that excess, at least 0.

    One more variable, the excess t: minimise t where rows w - t <= bounds.
    """
    num_bounds, num_domains = rows_JK.shape
    x = _minimise(
        np.append(np.zeros(num_domains), 1.0), np.column_stack([rows_JK, -np.ones(num_bounds)]), bounds_J, limits
    )
    assert x is not None, "limits leave room, and the excess may be as large as need be"
    return x[:num_domains], float(x[num_domains])


def _minimise(cost: np.ndarray, rows: np.ndarray, bounds: np.ndarray, limits: Limits) -> np.ndarray | None:
    """Return the x of least cost with rows x <= bounds, the weights in it within the limits and with sum 1.

    What follows the weights in x is at least 0. None where no x meets the bounds.
    """
    num_domains = len(limits.lower_K)
    is_weight = np.arange(len(cost)) < num_domains
    within = [*zip(limits.lower_K, limits.upper_K, strict=True), *[(0.0, None)] * (len(cost) - num_domains)]
    found = linprog(cost, A_ub=rows, b_ub=bounds, A_eq=is_weight[None].astype(float), b_eq=[1.0], bounds=within)
    return found.x if found.success else None


DYNAMICS = Planner(
    name="dynamics",
    make=DynamicsPredictor,
    solve=solve_programme,
    needs="transfer",
    explain=(
        "the losses after the first measurement's tokens, from the slopes of the runs on each domain alone: a rival, "
        "which says nothing of the rest of the run"
    ),
    source="DynaMiCS, arXiv 2605.10770, abstract",
    differences=(
        "The paper measures the slopes again at every update; here they are measured once, on the base model. The form "
        "of its programme is not in the abstract: where no mixture meets the bounds, the worst excess is least here."
    ),
)
