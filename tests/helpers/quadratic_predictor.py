"""A predictor whose optimum is known: every loss is a quadratic of the weights."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from versatune_ds.mixture.planning.predictor import Predicted


@dataclass
class QuadraticPredictor:
    """Predict domain k's loss as base_k * (1 - gain_k * w_k + cost_k * w_k ** 2 + others_k * (1 - w_k))."""

    base_losses_K: np.ndarray
    gain_K: np.ndarray
    cost_K: np.ndarray
    others_K: np.ndarray
    stderr: float = 0.0
    is_costly: bool = False
    calibration: dict = field(default_factory=dict)
    asked: list = field(default_factory=list)
    """Every mixture that was asked for."""

    def predict(self, weights_NK):
        assert np.allclose(weights_NK.sum(axis=1), 1.0)
        assert weights_NK.min() >= -1e-9
        self.asked += [weights_K.copy() for weights_K in weights_NK]
        factor_NK = 1 - self.gain_K * weights_NK + self.cost_K * weights_NK**2 + self.others_K * (1 - weights_NK)
        losses_NK = self.base_losses_K * factor_NK
        return Predicted(losses_NK=losses_NK, stderrs_NK=np.full(losses_NK.shape, self.stderr))


def quadratic(*, base, gain, cost=0.0, others=0.0, **kwargs):
    """Return a predictor; a number stands for all domains."""
    base_K = np.asarray(base, dtype=np.float64)
    columns = (np.broadcast_to(np.asarray(values, dtype=np.float64), base_K.shape) for values in (gain, cost, others))
    return QuadraticPredictor(base_K, *columns, **kwargs)
