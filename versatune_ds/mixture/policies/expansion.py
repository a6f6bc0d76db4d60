"""The paper's domain-expansion rule: a target gains weight while the other domains do not forget.

Shape legend: **K** domains.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from versatune_ds.mixture.policies import versatune
from versatune_ds.mixture.policies.acted import Acted
from versatune_ds.mixture.policies.policy import Policy, PolicySettings
from versatune_ds.mixture.policies.signals import Signals
from versatune_ds.mixture.policies.simplex import neutral, normalise


def update(weights_K: np.ndarray, signals: Signals, step: int, settings: PolicySettings) -> np.ndarray:
    """Return weights in which the target gains delta if the others forget little enough.

    Is tolerated (mean of f over the others < epsilon * g_target * n):  P_e = min(P_e + delta * n, cap).
    Otherwise P_e is kept (`hold`), or all domains follow `versatune` (`multi_ability`).
    The others follow `versatune` among themselves and fill 1 - P_e.
    """
    target_id = _target_id(settings)
    is_tolerated = is_forgetting_tolerated(signals, settings)
    if not is_tolerated and settings.otherwise == "multi_ability":
        return versatune.update(weights_K, signals, step, settings)
    target_weight = float(weights_K[target_id])

    # The target grows up to the cap. One that starts above the cap is not cut here: the safeguards do that.
    if is_tolerated:
        target_weight = max(target_weight, min(_wanted_target_weight(weights_K, settings), settings.cap))

    # The others share what is left, by `versatune`; equally if the target had everything.
    grown_K = weights_K * versatune.growth(signals, settings)
    grown_K[target_id] = 0.0
    if grown_K.sum() <= 0:
        grown_K = np.ones_like(weights_K)
        grown_K[target_id] = 0.0
    weights_after_K = normalise(grown_K) * (1.0 - target_weight)
    weights_after_K[target_id] = target_weight
    return weights_after_K


def is_forgetting_tolerated(signals: Signals, settings: PolicySettings) -> bool:
    """Return whether the other domains forget little enough for the target to gain."""
    forgetting, tolerated = forgetting_against_tolerance(signals, settings)
    return forgetting < tolerated


def forgetting_against_tolerance(signals: Signals, settings: PolicySettings) -> tuple[float, float]:
    """Return the others' mean forgetting degree and epsilon * the target's potential * n."""
    target_id = _target_id(settings)
    is_other_K = np.arange(len(signals.loss_K)) != target_id
    potential = float(neutral(signals.learnable_potential_K)[target_id])
    forgetting = float(np.mean(np.nan_to_num(signals.forgetting_degree_K[is_other_K])))
    return forgetting, settings.epsilon * potential * settings.num_intervals


def _target_id(settings: PolicySettings) -> int:
    assert settings.target_id is not None, "policy_settings resolves the target of a targeted policy"
    return settings.target_id


def _wanted_target_weight(weights_K: np.ndarray, settings: PolicySettings) -> float:
    """Return P_e + delta * n, the target's weight without a cap."""
    return float(weights_K[_target_id(settings)]) + settings.delta * settings.num_intervals


def _explain(signals: Signals, settings: PolicySettings, names: Sequence[str]) -> str:
    """Return the comparison that decides whether the target gains."""
    forgetting, tolerated = forgetting_against_tolerance(signals, settings)
    is_tolerated = forgetting < tolerated
    otherwise = "holds" if settings.otherwise == "hold" else "follows versatune like all domains"
    return (
        f"the other domains' mean forgetting {forgetting:.4f} is {'below' if is_tolerated else 'not below'} the "
        f"tolerated {tolerated:.4f}, so {names[_target_id(settings)]} {'gains' if is_tolerated else otherwise}"
    )


def _limits(
    weights_K: np.ndarray, signals: Signals, settings: PolicySettings, names: Sequence[str]
) -> tuple[Acted, ...]:
    """Return a cap where the rule stopped its target there, so that the safeguards find nothing to cut."""
    target_id = _target_id(settings)
    is_cut = _wanted_target_weight(weights_K, settings) > settings.cap >= weights_K[target_id]
    if not is_cut or not is_forgetting_tolerated(signals, settings):
        return ()
    return (Acted("cap", (names[target_id],), f"cap: {names[target_id]}"),)


def _bound_effect(signals: Signals, unbounded: Signals, settings: PolicySettings) -> tuple[Acted, ...]:
    """Return the confidence bound where the target gains only because of it."""
    bounded, tolerated = forgetting_against_tolerance(signals, settings)
    measured, _ = forgetting_against_tolerance(unbounded, settings)
    if bounded < tolerated <= measured:
        text = f"confidence bound: the mean forgetting {measured:.4f} counts as {bounded:.4f}"
        return (Acted("confidence bound", (), text),)
    return ()


EXPANSION = Policy(
    name="expansion",
    update=update,
    needs_references=True,
    target="required",
    reads=("sigma", "delta", "epsilon", "expansion.otherwise", "target"),
    live_rates=("sigma", "delta", "epsilon"),
    measure=lambda setting: "potential",
    explain=_explain,
    limits=_limits,
    bound_effect=_bound_effect,
    method=versatune.VERSATUNE.method,
    citation=versatune.VERSATUNE.citation,
    source="VersaTune (arXiv 2411.11266), Algorithm 3; docs/method.md section 4",
    differences=(
        "f is the change over one update, so n scales what is tolerated as it scales delta (1 in paper mode); the "
        "otherwise branch and the others' rescaling are choices, as the paper's full text was not available."
    ),
)
