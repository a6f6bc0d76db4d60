"""The planner `transfer`: predict the losses of a mixture from runs on single domains and a few on mixtures.

Two things happen to a domain in a mixed run: it learns from its own rows, and the rows of the others change it too. In
runs on one domain alone, other domains are forgotten several times more than in any mixture that contains a few of
their own rows. So what the others do to a domain counts less, the larger its own share is:

    log(l_j / base_j) = d_j (n_j / m_j)^q_j  +  h_j sum_{i != j} w_i / (1 - w_j) f_ij  +  r_j s_j
    h_j = (1 - w_j) / (1 - w_j + kappa w_j)

- d_j: log change of domain j's loss in its own run of m_j tokens;  n_j: tokens of it in the planned run. Both count a
  repeated token less than a new one (`effective_tokens`).
- A domain that over-fitted in its own run does so later in a mixture, and falls further. So d_j and m_j are those of
  the lowest loss in any run, its own or a mixed one, and beyond m_j the log loss rises in proportion to n_j - m_j, up
  to the end of its own run.
- f_ij: log change of domain j's loss in the run on domain i alone.
- q_j, kappa: from the mixed runs. h_j is the rest of a forgetting that own rows undo: others push at a rate (1 - w_j),
  own rows pull back at a rate kappa w_j.
- r_j s_j: what the formula leaves unexplained in the mixed runs, fading towards the runs on one domain;
  s_j = min(w_j (1 - w_j) / (u (1 - u)), 1) with u = 1 / K.

Source: this project; docs/method.md section 13 has the measurements. The power law in tokens is that of scaling laws,
and the use of measured effects between domains that of DynaMiCS (arXiv 2605.10770), whose response is linear.

Shape legend: **K** domains, **N** mixtures, **M** mixed runs, **B** parameter sets: the estimate, then draws of its
error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from versatune_ds.mixture.planning.measured_changes import LogChanges, OwnRun, distance_to_nearest, log_changes
from versatune_ds.mixture.planning.predictor import Planner, PlanTask, Predicted

KAPPA = 100.0
"""Strength of own rows against forgetting where fewer than two mixed runs tell: 1 % of own rows undo half of it."""
POWER = 0.65
"""Exponent of the own tokens where no mixed run tells."""
POWER_RANGE = (0.2, 1.5)
POWER_OVER_FITTED = 0.3
"""Exponent of the own tokens of a domain that over-fitted in its own run: few passes bring most of what all can."""
REPEATED_TOKENS = 15.4
"""R* of `effective_tokens`: the most that all repetitions together are worth, in passes over the data."""
REPEAT_ERROR = 0.015
"""Error at a measured mixture, as a share of the gain of a domain's own run: runs differ by their data order."""
FORMULA_ERROR = 0.06
"""What is added to it for each factor of e between a domain's share and that of the nearest mixed run."""
ERROR_WITHOUT_MIXED_RUN = 0.15
"""The error where there is no mixed run, as a share of what a domain's own run gains."""
NUM_DRAWS = 64


def effective_tokens(tokens: np.ndarray, *, tokens_per_epoch: np.ndarray) -> np.ndarray:
    """Return how many new tokens are worth as much as these, of which those beyond one pass are repeated.

    D' = U + U R* (1 - exp(-R / R*)),  U = min(D, one pass), R = D / U - 1.  Source: arXiv 2305.16264, equation 5.
    Example: 4 passes over 100 tokens, R* 15.4: 100 + 1540 (1 - exp(-3 / 15.4)) = 373 tokens.
    """
    unique = np.minimum(tokens, tokens_per_epoch)
    repeats = np.maximum(tokens / np.maximum(tokens_per_epoch, 1) - 1.0, 0.0)
    return unique + tokens_per_epoch * REPEATED_TOKENS * -np.expm1(-repeats / REPEATED_TOKENS)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Response:
    """The parameters of the formula."""

    single_BKK: np.ndarray
    gain_BK: np.ndarray
    """d, log changes by own rows."""
    power_BK: np.ndarray
    residual_BK: np.ndarray
    kappa: float


class TransferPredictor:
    """Predict by the formula at the top of this module.

    Args:
        task: What is planned.

    Raises:
        ValueError: If a domain was not trained on alone, or the base model has no finite loss of a measured one.
    """

    is_costly = False

    def __init__(self, task: PlanTask) -> None:
        table = task.table
        table.check_is_complete()
        self._table = table
        self._is_measured_K = table.is_measured() & np.isfinite(table.base_losses_K)
        self._num_tokens = float(task.num_tokens)
        self._own = [OwnRun.of(table, k) for k in range(len(table.domain_set))]
        rng = np.random.default_rng(task.seed)
        measured = [log_changes(table, self._own, rng=generator) for generator in (None, *[rng] * NUM_DRAWS)]
        self._lowest_tokens_K = np.array([1.0 if own is None else own.lowest_tokens for own in self._own])
        self._lowest_run_K: list[int | None] = self._choose_lowest_runs(measured[0])
        kappa = self._fitted_kappa(measured[0])
        fits = [self._fit(each, kappa=kappa) for each in measured]
        self._response = _Response(
            single_BKK=np.array([each.single_KK for each in measured]),
            gain_BK=np.array([self._gain(each, kappa=kappa) for each in measured]),
            power_BK=np.array([power_K for power_K, _ in fits]),
            residual_BK=np.array([residual_K for _, residual_K in fits]),
            kappa=kappa,
        )

    def _choose_lowest_runs(self, measured: LogChanges) -> list[int | None]:
        """Return the mixed run in which an over-fitted domain gained most by its own rows; None for its own run."""
        found: list[int | None] = [None] * len(self._own)
        if not self._table.mixed:
            return found
        own_MK = measured.mixed_MK - self._others_in_mixed_runs(measured, kappa=KAPPA)
        for k, own in enumerate(self._own):
            if own is None or not own.is_over_fitted or np.all(np.isnan(own_MK[:, k])):
                continue
            run = int(np.nanargmin(own_MK[:, k]))
            if own_MK[run, k] < measured.lowest_K[k] and self._table.mixed[run].weights_K[k] > 0:
                found[k] = run
                mixed = self._table.mixed[run]
                self._lowest_tokens_K[k] = max(mixed.weights_K[k] * float(mixed.tokens_S[-1]), 1.0)
        return found

    def _gain(self, measured: LogChanges, *, kappa: float) -> np.ndarray:
        """Return d [K]: the log change of each domain's loss by its own rows, where it was lowest."""
        gain_K = measured.lowest_K.copy()
        others_MK = self._others_in_mixed_runs(measured, kappa=kappa)
        for k, run in enumerate(self._lowest_run_K):
            if run is not None:
                gain_K[k] = measured.mixed_MK[run, k] - others_MK[run, k]
        return gain_K

    def _others_in_mixed_runs(self, measured: LogChanges, *, kappa: float) -> np.ndarray:
        """Return what the others did to each domain in the mixed runs [M,K]."""
        weights_MK = np.array([run.weights_K for run in self._table.mixed]).reshape(-1, len(self._own))
        return _others_part(weights_MK, measured.single_KK[None], kappa=kappa)[0]

    @property
    def calibration(self) -> Mapping[str, Any]:
        """Return what the mixed runs told."""
        names = self._table.domain_set
        return {
            "mixed_runs": [names.to_dict(run.weights_K) for run in self._table.mixed],
            "kappa": self._response.kappa,
            "power": names.to_dict(self._response.power_BK[0]),
            "unexplained": names.to_dict(self._response.residual_BK[0]),
        }

    def predict(self, weights_NK: np.ndarray) -> Predicted:
        """Return the predicted losses of N mixtures [N,K]; NaN for a domain without held-out rows."""
        log_change_BNK = self._log_change(weights_NK, self._response, tokens=self._num_tokens)
        base_K = np.where(self._is_measured_K, self._table.base_losses_K, np.nan)
        losses_NK = base_K * np.exp(log_change_BNK[0])
        noise_NK = log_change_BNK[1:].std(axis=0)
        formula_NK = self._formula_error(weights_NK) * np.abs(self._response.gain_BK[0])
        return Predicted(losses_NK=losses_NK, stderrs_NK=losses_NK * np.hypot(noise_NK, formula_NK))

    def _log_change(self, weights_NK: np.ndarray, response: _Response, *, tokens: float) -> np.ndarray:
        """Return log(l / base) for every parameter set [B,N,K] in a run of `tokens`."""
        own_BNK = self._own_part(weights_NK, response, tokens=tokens)
        others_BNK = _others_part(weights_NK, response.single_BKK, kappa=response.kappa)
        return own_BNK + others_BNK + response.residual_BK[:, None, :] * _between(weights_NK)

    def _own_part(self, weights_NK: np.ndarray, response: _Response, *, tokens: float) -> np.ndarray:
        """Return what each domain's own rows do to it [B,N,K]."""
        share_NK, beyond_NK = self._own_progress(weights_NK, tokens=tokens)
        gain_B1K = response.gain_BK[:, None, :]
        end_B1K = np.diagonal(response.single_BKK, axis1=1, axis2=2)[:, None, :]
        return gain_B1K * share_NK ** response.power_BK[:, None, :] + (end_B1K - gain_B1K) * beyond_NK

    def _own_progress(self, weights_NK: np.ndarray, *, tokens: float) -> tuple[np.ndarray, np.ndarray]:
        """Return how far each domain comes with its own tokens, two arrays [N,K].

        First n_j / m_j in effective tokens, at most 1 for a domain that over-fitted; then how much of the way from
        there to the end of its own run lies behind it, 0 for the others.
        """
        share_NK, beyond_NK = np.zeros_like(weights_NK), np.zeros_like(weights_NK)
        for k, (own, lowest) in enumerate(zip(self._own, self._lowest_tokens_K, strict=True)):
            if own is None:
                continue
            tokens_N, per_epoch = weights_NK[:, k] * tokens, np.array(float(own.tokens_per_epoch))
            reached_N = np.minimum(tokens_N, lowest) if own.is_over_fitted else tokens_N
            at_lowest = effective_tokens(np.array(lowest), tokens_per_epoch=per_epoch)
            share_NK[:, k] = effective_tokens(reached_N, tokens_per_epoch=per_epoch) / at_lowest
            if own.is_over_fitted and own.end_tokens > lowest:
                beyond_NK[:, k] = np.maximum(tokens_N - lowest, 0.0) / (own.end_tokens - lowest)
        return share_NK, beyond_NK

    def _fit(self, measured: LogChanges, *, kappa: float) -> tuple[np.ndarray, np.ndarray]:
        """Return exponents [K] and what they leave unexplained [K], least squares over the mixed runs."""
        is_over_fitted_K = np.array([own is not None and own.is_over_fitted for own in self._own])
        usual_K = np.where(is_over_fitted_K, POWER_OVER_FITTED, POWER)
        if not self._table.mixed:
            return usual_K, np.zeros(len(usual_K))
        candidates_P = np.linspace(*POWER_RANGE, 131)
        power_PK = np.where(is_over_fitted_K, POWER_OVER_FITTED, candidates_P[:, None])
        error_PMK = self._unexplained(measured, power_PK=power_PK, kappa=kappa)
        best_K = np.argmin(np.nansum(error_PMK**2, axis=1), axis=0)
        everywhere_K = np.arange(len(usual_K))
        error_MK = error_PMK[best_K, :, everywhere_K].T
        return power_PK[best_K, everywhere_K], np.nan_to_num(error_MK).mean(axis=0)

    def _unexplained(self, measured: LogChanges, *, power_PK: np.ndarray, kappa: float) -> np.ndarray:
        """Return measured log changes of the mixed runs less those of the formula without residual [P,M,K].

        P is the number of exponents tried.
        """
        response = _Response(
            single_BKK=measured.single_KK[None],
            gain_BK=self._gain(measured, kappa=kappa)[None],
            power_BK=power_PK,
            residual_BK=np.zeros((1, power_PK.shape[1])),
            kappa=kappa,
        )
        predicted = [
            self._log_change(run.weights_K[None], response, tokens=float(run.tokens_S[-1]))[:, 0]
            for run in self._table.mixed
        ]
        return measured.mixed_MK - np.stack(predicted, axis=1)

    def _fitted_kappa(self, measured: LogChanges) -> float:
        """Return the kappa that explains the mixed runs best; the usual one where there are fewer than two.

        Few runs say little about it, so its logarithm is held near the usual one: unexplained changes of FORMULA_ERROR
        of a domain's gain count as much as a factor of e.
        """
        if len(self._table.mixed) < 2:
            return KAPPA
        candidates = KAPPA * np.exp(np.linspace(-2.5, 2.5, 51))
        costs = []
        for kappa in candidates:
            power_K, residual_K = self._fit(measured, kappa=float(kappa))
            error_MK = self._unexplained(measured, power_PK=power_K[None], kappa=float(kappa))[0] - residual_K
            gain_K = np.maximum(np.abs(self._gain(measured, kappa=float(kappa))), 1e-6)
            squares = np.nansum((error_MK / (FORMULA_ERROR * gain_K)) ** 2) / max(int(self._is_measured_K.sum()), 1)
            costs.append(squares + math.log(kappa / KAPPA) ** 2)
        return float(candidates[int(np.argmin(costs))])

    def _formula_error(self, weights_NK: np.ndarray) -> np.ndarray:
        """Return the formula's own error as a share of a domain's gain [N,K]; it grows away from the mixed runs."""
        if not self._table.mixed:
            return np.full_like(weights_NK, ERROR_WITHOUT_MIXED_RUN)
        mixed_MK = np.array([run.weights_K for run in self._table.mixed])
        return REPEAT_ERROR + FORMULA_ERROR * distance_to_nearest(weights_NK, mixed_MK)


def _others_part(weights_NK: np.ndarray, single_BKK: np.ndarray, *, kappa: float) -> np.ndarray:
    """Return what the other domains' rows do to each [B,N,K]."""
    others_BKK = single_BKK * (1.0 - np.eye(weights_NK.shape[1]))
    rest_NK = 1.0 - weights_NK
    # sum_{i != j} w_i / (1 - w_j) f_ij; where w_j is 1 there are no others.
    pushed_BNK = np.einsum("ni,bij->bnj", weights_NK, others_BKK) / np.maximum(rest_NK, 1e-12)
    return pushed_BNK * rest_NK / (rest_NK + kappa * weights_NK)


def _between(weights_NK: np.ndarray) -> np.ndarray:
    """Return s [N,K]: 1 where a domain has about an equal share, fading to 0 where it has nothing or all."""
    K = weights_NK.shape[1]
    equal = (1.0 / K) * (1.0 - 1.0 / K)
    return np.minimum(weights_NK * (1.0 - weights_NK) / equal, 1.0) if K > 1 else np.zeros_like(weights_NK)


TRANSFER = Planner(
    name="transfer",
    make=TransferPredictor,
    needs="transfer",
    predicts_earlier=True,
    explain=(
        "from runs on each domain alone, and on a mixture, how a domain's own rows lower its loss and how much of the "
        "others' effect they leave"
    ),
    source="docs/method.md section 13",
    differences=(
        "In the spirit of DynaMiCS (arXiv 2605.10770), whose response is linear. A linear response fails here: alone, "
        "one domain makes others forget twice their loss, of which a few of their own rows leave nothing."
    ),
)
