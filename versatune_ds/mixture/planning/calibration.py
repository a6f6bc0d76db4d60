"""Calibrate the losses that kept models predict: they rank mixtures well, but the losses are far too high.

In logarithms of a domain's loss relative to the base model's, a prediction lies below the chord of the single-domain
runs, sum_i w_i f_ij. How far it lies below is multiplied by a factor of the domain, s_j:

    log(l_j / base_j) = sum_i w_i f_ij  +  s_j (g_j(w) - sum_i w_i g_j(e_i))  +  r_j h(w)

- f_ij: log change of domain j's loss in the run on domain i alone;  g_j(w): the same as the models predict it.
- At a single domain this is exact, whatever s_j is: a merge there is the model trained on that domain alone.
- s_j: least squares over the mixed runs, held near 1 where the prediction is almost a chord; 1 where there is no mixed
  run, with a larger error.
- r_j: what that leaves unexplained in the mixed runs; h(w) = (1 - sum_i w_i^2) / (1 - 1 / K) is 0 at single domains.

Models know nothing of a run longer than those they were kept from. What more tokens do is taken from the planner
`transfer`: the ratio of its losses at the planned and at the measured length.

Source: this project, docs/method.md section 13. MergeMix (arXiv 2601.17858) and MixMin (arXiv 2502.10510) use ranks
alone.

Shape legend: **K** domains, **N** mixtures, **M** mixed runs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from versatune_ds.mixture.planning.measured_changes import distance_to_nearest
from versatune_ds.mixture.planning.predictor import PlanTask, Predicted
from versatune_ds.mixture.planning.transfer import TransferPredictor
from versatune_ds.mixture.planning.transfer_table import TransferTable

logger = logging.getLogger(__name__)

SCALE_RANGE = (0.25, 4.0)
CHORD = 0.01
"""A prediction this near to the chord says little about s_j: a distance of it counts as much as s_j being 1."""
REPEAT_ERROR = 0.015
"""Error at a measured mixture, as a share of what a domain's own run gains: runs differ by their data order."""
FORMULA_ERROR = 0.1
"""What is added to it for each factor of e between a domain's share and that of the nearest mixed run."""
LENGTH_ERROR = 0.25
"""Error of what another length does, as a share of it."""
_SAME_LENGTH = 0.02


class ModelLosses(Protocol):
    """Losses that kept models give for mixtures, not calibrated."""

    is_costly: bool
    scale_error: float
    """Standard error of s_j where no mixed run tells it."""
    base_losses_K: np.ndarray
    """Those of the base model, on the same rows; NaN for a domain without held-out rows."""

    def predict(self, weights_NK: np.ndarray) -> Predicted:
        """Return losses [N,K], and the standard errors of their changes from the base model, paired by example."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Levels:
    """What the models' losses are calibrated by."""

    runs_KK: np.ndarray
    """f: log changes in the runs on one domain alone; rows are the domain trained on, 0 where there is no run."""
    models_KK: np.ndarray
    """The same as the models predict it."""
    scale_K: np.ndarray
    scale_errors_K: np.ndarray
    residual_K: np.ndarray
    """r: what the factor leaves unexplained in the mixed runs."""


class CalibratedPredictor:
    """Predict losses from kept models, calibrated with the measured runs.

    Args:
        models: What the models predict.
        task: What is planned.
    """

    def __init__(self, models: ModelLosses, task: PlanTask) -> None:
        table = task.table
        self._models = models
        self._table = table
        self._levels = _levels(models, table)
        self._measured_tokens = _measured_tokens(table)
        self._at_lengths = _at_lengths(task, self._measured_tokens)
        if not table.mixed:
            logger.warning(
                "no run on a mixture in the table: losses are not calibrated and have larger errors; versatune "
                "reference with reference.mixed_run=true measures one"
            )

    @property
    def is_costly(self) -> bool:
        """Whether the models are run for every prediction."""
        return self._models.is_costly

    @property
    def calibration(self) -> Mapping[str, Any]:
        """Return the factors, and how the length was taken into account."""
        names = self._table.domain_set
        return {
            "mixed_runs": [names.to_dict(run.weights_K) for run in self._table.mixed],
            "scale": names.to_dict(self._levels.scale_K),
            "unexplained": names.to_dict(self._levels.residual_K),
            "measured_tokens": self._measured_tokens,
            "length": "as measured" if self._at_lengths is None else "by the planner transfer",
        }

    def predict(self, weights_NK: np.ndarray) -> Predicted:
        """Return the predicted losses of N mixtures [N,K]; NaN for a domain without held-out rows."""
        found, levels = self._models.predict(weights_NK), self._levels
        bend_NK = self._log_change(found.losses_NK) - weights_NK @ levels.models_KK
        mixed_part_N1 = _mixedness(weights_NK)[:, None]
        log_NK = weights_NK @ levels.runs_KK + levels.scale_K * bend_NK + levels.residual_K * mixed_part_N1
        errors = [
            levels.scale_K * found.stderrs_NK / found.losses_NK,
            levels.scale_errors_K * np.abs(bend_NK),
            _formula_error(weights_NK, self._table) * np.abs(np.diagonal(levels.runs_KK)),
        ]
        if self._at_lengths is not None:
            planned, measured = (np.log(predictor.predict(weights_NK).losses_NK) for predictor in self._at_lengths)
            log_NK = log_NK + planned - measured
            errors.append(LENGTH_ERROR * np.abs(planned - measured))
        losses_NK = self._table.base_losses_K * np.exp(log_NK)
        return Predicted(losses_NK=losses_NK, stderrs_NK=losses_NK * np.sqrt(sum(error**2 for error in errors)))

    def _log_change(self, losses_NK: np.ndarray) -> np.ndarray:
        return np.log(losses_NK / self._models.base_losses_K)


def _levels(models: ModelLosses, table: TransferTable) -> _Levels:
    """Measure the models at single domains and at the mixed runs, and compare."""
    K = len(table.domain_set)
    mixed_MK = np.array([run.weights_K for run in table.mixed]).reshape(-1, K)
    found = models.predict(np.concatenate([np.eye(K), mixed_MK]))
    log_NK = np.log(found.losses_NK / models.base_losses_K)
    models_KK = log_NK[:K]
    runs_KK = np.where(table.is_measured(), np.zeros((K, K)), np.nan)
    for name, source in table.sources.items():
        runs_KK[table.domain_set.id_of(name)] = np.log1p(source.changes_SK[-1] / table.base_losses_K)
    if not len(mixed_MK):
        return _Levels(
            runs_KK=runs_KK,
            models_KK=models_KK,
            scale_K=np.ones(K),
            scale_errors_K=np.full(K, models.scale_error),
            residual_K=np.zeros(K),
        )
    # s_j by least squares through the origin; its error is that of the mixed runs' changes.
    bend_MK = log_NK[K:] - mixed_MK @ models_KK
    run_bend_MK = np.array([np.log1p(run.changes_SK[-1] / table.base_losses_K) for run in table.mixed])
    run_bend_MK -= mixed_MK @ runs_KK
    noise_MK = np.array([run.change_stderrs_SK[-1] / run.losses_SK[-1] for run in table.mixed])
    squares_K = np.sum(bend_MK**2, axis=0) + CHORD**2
    scale_K = np.clip((np.sum(bend_MK * run_bend_MK, axis=0) + CHORD**2) / squares_K, *SCALE_RANGE)
    # What is left, at the mixed runs' distance from single domains.
    left_MK = run_bend_MK - scale_K * bend_MK
    return _Levels(
        runs_KK=runs_KK,
        models_KK=models_KK,
        scale_K=scale_K,
        scale_errors_K=np.sqrt(np.nan_to_num(np.sum((bend_MK * noise_MK) ** 2, axis=0))) / squares_K,
        residual_K=np.mean(left_MK / np.maximum(_mixedness(mixed_MK), 0.1)[:, None], axis=0),
    )


def _mixedness(weights_NK: np.ndarray) -> np.ndarray:
    """Return h [N]: 1 at equal shares, 0 at single domains."""
    K = weights_NK.shape[1]
    return (1.0 - np.sum(weights_NK**2, axis=1)) / (1.0 - 1.0 / K) if K > 1 else np.zeros(len(weights_NK))


def _formula_error(weights_NK: np.ndarray, table: TransferTable) -> np.ndarray:
    """Return the calibration's own error as a share of a domain's gain [N,K]; it grows away from what was measured.

    Single domains were measured too. Where there is no mixed run, the error of the factor takes its place.
    """
    if not table.mixed:
        return np.full_like(weights_NK, REPEAT_ERROR)
    trained_MK = np.array([*np.eye(weights_NK.shape[1]), *(run.weights_K for run in table.mixed)])
    return REPEAT_ERROR + FORMULA_ERROR * distance_to_nearest(weights_NK, trained_MK)


def _measured_tokens(table: TransferTable) -> float:
    """Return the tokens of the runs that the models were kept from: those of the mixed run, else of the longest."""
    runs = table.mixed or tuple(table.sources.values())
    return float(max(run.tokens_S[-1] for run in runs))


def _at_lengths(task: PlanTask, measured_tokens: float) -> tuple[TransferPredictor, TransferPredictor] | None:
    """Return the planner `transfer` at the planned and at the measured length; None where they are the same."""
    if abs(task.num_tokens / measured_tokens - 1.0) <= _SAME_LENGTH:
        return None
    logger.info(
        "the kept models are of runs of %s tokens, the plan of %s: what more tokens do is taken from the planner "
        "transfer", f"{measured_tokens:,.0f}", f"{task.num_tokens:,.0f}",
    )  # fmt: skip
    return TransferPredictor(task), TransferPredictor(replace(task, num_tokens=measured_tokens))
