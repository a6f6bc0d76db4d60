"""A quadratic fitted to predicted mixtures, so that a search with few costly predictions knows where to look next.

Shape legend: **N** mixtures, **K** domains.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from versatune_ds.mixture.planning.predictor import Predicted

_RIDGE = 1e-6
"""Penalty of the coefficients, relative to the number of mixtures: with fewer mixtures than coefficients it decides
between the fits."""
_LEAST_ERROR = 1e-4
"""Least error of the fit that is assumed, as a share of the loss."""


class QuadraticFit:
    """Losses as sum_ij c_ij w_i w_j for each domain, by least squares; a `Predictor` in closed form.

    On the simplex this contains every quadratic, linear and constant function, since the weights sum to 1.
    """

    is_costly = False
    calibration: Mapping[str, Any] = {}

    def __init__(self, weights_NK: np.ndarray, predicted: Predicted) -> None:
        features_NM = _products(weights_NK)
        penalty_MM = _RIDGE * len(weights_NK) * np.eye(features_NM.shape[1])
        is_known_K = ~np.isnan(predicted.losses_NK).any(axis=0)
        self._means_K = predicted.losses_NK.mean(axis=0)  # fitted from the mean: the penalty then pulls towards it
        self._coefficients_MK = np.full((features_NM.shape[1], len(is_known_K)), np.nan)
        centred_NK = (predicted.losses_NK - self._means_K)[:, is_known_K]
        self._coefficients_MK[:, is_known_K] = np.linalg.solve(
            features_NM.T @ features_NM + penalty_MM, features_NM.T @ centred_NK
        )
        fitted_NK = self._means_K + features_NM @ self._coefficients_MK
        errors_K = np.sqrt(np.mean((fitted_NK - predicted.losses_NK) ** 2, axis=0))
        self.margin_K = 2.0 * errors_K + _LEAST_ERROR * self._means_K
        """Distance to keep from a bound, in nats [K]: what the fit puts exactly at one would often lie beyond it."""
        self._stderrs_K = predicted.stderrs_NK.mean(axis=0)

    def predict(self, weights_NK: np.ndarray) -> Predicted:
        """Predict the losses of N mixtures; the standard errors are those of the mixtures fitted, in the mean."""
        losses_NK = self._means_K + _products(weights_NK) @ self._coefficients_MK
        return Predicted(losses_NK=losses_NK, stderrs_NK=np.broadcast_to(self._stderrs_K, losses_NK.shape))


def _products(weights_NK: np.ndarray) -> np.ndarray:
    """Return w_i w_j for i <= j, [N, K (K + 1) / 2]."""
    rows, columns = np.triu_indices(weights_NK.shape[1])
    return weights_NK[:, rows] * weights_NK[:, columns]
