"""Online Data Mixing: the bandit Exp3, whose reward is a domain's loss.

Shape legend: **K** domains.
"""

from __future__ import annotations

import numpy as np

from versatune_ds.mixture.policies.policy import Policy, PolicySettings, citation_of_rule, method_by_rule_of
from versatune_ds.mixture.policies.signals import Signals
from versatune_ds.mixture.policies.simplex import equal_weights, exponentiated, neutral


def update(weights_K: np.ndarray, signals: Signals, step: int, settings: PolicySettings) -> np.ndarray:
    """Return the bandit's weights.

    R_j = sum over updates of (l_j / 10) / P_j;  eps_t = min(1/K, sqrt(ln K / (K t)));
    w_j = (1 - K eps_t) * exp(eps_{t-1} R_j) / sum + eps_t.
    """
    num_domains, turn = len(weights_K), max(signals.update, 1)
    if num_domains == 1:
        return weights_K
    rate, previous_rate = _exploration_rate(num_domains, turn=turn), _exploration_rate(num_domains, turn=turn - 1)
    reward_sum_K = signals.loss_per_weight_sum_K / 10.0
    exploited_K = exponentiated(equal_weights(num_domains), previous_rate * neutral(reward_sum_K))
    return (1.0 - num_domains * rate) * exploited_K + rate


def _exploration_rate(num_domains: int, *, turn: int) -> float:
    """Return eps_t = min(1/K, sqrt(ln K / (K t))); 1/K before the first turn."""
    if turn < 1:
        return 1.0 / num_domains
    return min(1.0 / num_domains, float(np.sqrt(np.log(num_domains) / (num_domains * turn))))


ODM = Policy(
    name="odm",
    update=update,
    method=method_by_rule_of("Online Data Mixing", "2312.02406"),
    citation=citation_of_rule("Online Data Mixing", "2312.02406"),
    source="Online Data Mixing (arXiv 2312.02406), Algorithm 1; docs/method.md section 7",
    differences=(
        "A turn t is an update here, not a step; losses are those of the configured signal, and every domain is seen "
        "at every turn. The exponent is not scaled by the interval: the exploration rate sets it."
    ),
)
