"""The mixtures that a search has predicted, each of them once.

Shape legend: **N** mixtures, **K** domains.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from versatune_ds.mixture.planning.predictor import Predicted, Predictor

_DIGITS = 6
"""Digits of the weights in which two mixtures that count as different differ."""
_BATCH = 1_024
"""Most mixtures of one call: a predictor may need memory for many draws of each."""


class PredictedMixtures:
    """Predict mixtures, and remember them in the order in which they were asked for.

    Args:
        predictor: Asked once for every mixture; a mixture that differs from a known one by rounding is the known one.
        num_domains: K.
    """

    def __init__(self, predictor: Predictor, *, num_domains: int) -> None:
        self._predictor = predictor
        self._index_of: dict[bytes, int] = {}
        self.weights_NK = np.empty((0, num_domains))
        self.predicted = Predicted(losses_NK=np.empty((0, num_domains)), stderrs_NK=np.empty((0, num_domains)))

    def __len__(self) -> int:
        return len(self.weights_NK)

    def is_known(self, weights_K: np.ndarray) -> bool:
        """Return whether a mixture has been predicted."""
        return _keys(weights_K[None])[0] in self._index_of

    def add(self, weights_NK: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """Predict the mixtures that are not known yet, in one batch; return the indices of all, int64 [N]."""
        weights_NK = np.atleast_2d(np.asarray(weights_NK, dtype=np.float64))
        keys = _keys(weights_NK)
        first_of = {key: i for i, key in reversed(list(enumerate(keys))) if key not in self._index_of}
        added = sorted(first_of.values())
        self._index_of |= {keys[i]: len(self) + number for number, i in enumerate(added)}
        if added:
            self._append(weights_NK[added])
        return np.array([self._index_of[key] for key in keys], dtype=np.int64)

    def _append(self, weights_NK: np.ndarray) -> None:
        parts = [self._predictor.predict(weights_NK[i : i + _BATCH]) for i in range(0, len(weights_NK), _BATCH)]
        self.weights_NK = np.concatenate([self.weights_NK, weights_NK])
        self.predicted = Predicted(
            losses_NK=np.concatenate([self.predicted.losses_NK, *(part.losses_NK for part in parts)]),
            stderrs_NK=np.concatenate([self.predicted.stderrs_NK, *(part.stderrs_NK for part in parts)]),
        )

    def predicted_at(self, indices_N: np.ndarray) -> Predicted:
        """Return the predictions of some mixtures."""
        return Predicted(losses_NK=self.predicted.losses_NK[indices_N], stderrs_NK=self.predicted.stderrs_NK[indices_N])


def _keys(weights_NK: np.ndarray) -> list[bytes]:
    return [row.tobytes() for row in np.round(weights_NK, _DIGITS) + 0.0]  # + 0.0: -0.0 has other bytes
