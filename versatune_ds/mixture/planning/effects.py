"""What one more percent of a domain would do to every domain's loss, by the predictor's own numbers.

Shape legend: **K** domains, given more (rows) or measured (columns).
"""

from __future__ import annotations

import numpy as np

from versatune_ds.mixture.planning.predictor import Predictor

PERCENT = 0.01


def effects_of_one_more_percent(predictor: Predictor, weights_K: np.ndarray, base_losses_K: np.ndarray) -> np.ndarray:
    """Return the change of each loss for one more hundredth of the weight, as a share of the base model's, [K,K].

    The others give it up in proportion to their weights. A domain with more than .99 gives a hundredth up instead, and
    the sign is turned. Example: from (.5, .3, .2) one more percent of the first is (.51, .294, .196).

    Args:
        predictor: Asked for K + 1 mixtures in one batch.
        weights_K: The mixture that changes.
        base_losses_K: Held-out losses of the base model.
    """
    num_domains = len(weights_K)
    if num_domains == 1:
        return np.zeros((1, 1))
    signs_K = np.where(weights_K > 1.0 - PERCENT, -1.0, 1.0)
    others_KK = np.where(np.eye(num_domains, dtype=bool), 0.0, np.maximum(weights_K, 1e-12))
    others_KK /= others_KK.sum(axis=1, keepdims=True)
    moved_KK = weights_K + PERCENT * signs_K[:, None] * (np.eye(num_domains) - others_KK)
    losses = predictor.predict(np.concatenate([weights_K[None], moved_KK])).losses_NK
    return signs_K[:, None] * (losses[1:] - losses[0]) / base_losses_K
