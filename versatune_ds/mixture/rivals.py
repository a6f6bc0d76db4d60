"""Update the weights as other published systems do, for comparison.

The one idea: the same pure form as in `policies`, the same signals, held-out losses in nats per loss token; what had
to differ is said in each docstring.

Shape legend: **K** domains.
"""

from __future__ import annotations

import numpy as np

from versatune_ds.mixture.settings import PolicySettings
from versatune_ds.mixture.signals import Signals, neutral
from versatune_ds.mixture.weights import normalise


def authors_code(weights_K: np.ndarray, signals: Signals, step: int, settings: PolicySettings) -> np.ndarray:
    """Return P * exp(l), renormalised, with the raw loss l.

    Source: the repository published with VersaTune (8023looker/VersaTune); METHOD.md section 6.
    Differences from the paper: this is what the repository runs, not Algorithm 2: no reference, no sigma. Differences
    from the repository: it restarts the optimizer at each update (not reproduced); the exponent is n * l, n the
    intervals elapsed (1 in paper mode).
    """
    return _exponentiated(weights_K, settings.num_intervals * neutral(signals.loss_K))


def doremi(weights_K: np.ndarray, signals: Signals, step: int, settings: PolicySettings) -> np.ndarray:
    """Return (1 - c) * softmax(log P + eta * n * excess) + c / K, excess = max(l - l_reference, 0).

    Source: DoReMi (arXiv 2305.10429), Algorithm 1; METHOD.md section 7.
    Differences from the paper: the excess loss is clipped per domain, not per token (no reference model runs here),
    and measured on held-out rows; the weights are used online instead of averaged for a second training.
    """
    excess_loss_K = np.maximum(neutral(signals.loss_K - signals.reference_loss_K), 0.0)
    return _smoothed(_exponentiated(weights_K, settings.step_size * settings.num_intervals * excess_loss_K), settings)


def sheared(weights_K: np.ndarray, signals: Signals, step: int, settings: PolicySettings) -> np.ndarray:
    """Return (1 - c) * softmax(log P + eta * n * (l - l_reference)) + c / K, not clipped.

    Source: Sheared LLaMA (arXiv 2310.06694), dynamic batch loading, and its code (princeton-nlp/LLM-Shearing);
    METHOD.md section 7.
    Differences from the paper: it states max(l - l_reference, 0); its code does not clip, and this follows the code.
    """
    gap_K = neutral(signals.loss_K - signals.reference_loss_K)
    return _smoothed(_exponentiated(weights_K, settings.step_size * settings.num_intervals * gap_K), settings)


def odm(weights_K: np.ndarray, signals: Signals, step: int, settings: PolicySettings) -> np.ndarray:
    """Return the weights of the bandit Exp3 whose reward is a domain's loss.

    R_j = sum over updates of (l_j / 10) / P_j;  eps_t = min(1/K, sqrt(ln K / (K t)));
    w_j = (1 - K eps_t) * exp(eps_{t-1} R_j) / sum + eps_t.

    Source: Online Data Mixing (arXiv 2312.02406), Algorithm 1; METHOD.md section 7.
    Differences from the paper: a turn t is an update here, not a step; losses are those of the configured signal, and
    every domain is seen at every turn. The exponent is not scaled by the interval: the exploration rate sets it.
    """
    num_domains, turn = len(weights_K), max(signals.update, 1)
    if num_domains == 1:
        return weights_K
    rate, previous_rate = _exploration_rate(num_domains, turn=turn), _exploration_rate(num_domains, turn=turn - 1)
    reward_sum_K = signals.loss_per_weight_sum_K / 10.0
    exploited_K = _exponentiated(np.full(num_domains, 1.0 / num_domains), previous_rate * neutral(reward_sum_K))
    return (1.0 - num_domains * rate) * exploited_K + rate


def _exploration_rate(num_domains: int, *, turn: int) -> float:
    """Return eps_t = min(1/K, sqrt(ln K / (K t))); 1/K before the first turn."""
    if turn < 1:
        return 1.0 / num_domains
    return min(1.0 / num_domains, float(np.sqrt(np.log(num_domains) / (num_domains * turn))))


def _exponentiated(weights_K: np.ndarray, exponent_K: np.ndarray) -> np.ndarray:
    """Return P * exp(exponent), renormalised; the largest exponent is taken off first so that nothing overflows."""
    return normalise(weights_K * np.exp(np.minimum(exponent_K - np.max(exponent_K[weights_K > 0]), 0.0)))


def _smoothed(weights_K: np.ndarray, settings: PolicySettings) -> np.ndarray:
    """Return (1 - c) * weights + c / K."""
    return (1.0 - settings.smoothing) * weights_K + settings.smoothing / len(weights_K)
