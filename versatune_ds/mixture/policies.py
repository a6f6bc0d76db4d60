"""Update the weights: the paper's two rules, its baselines, and `steer` beside them.

The one idea: a policy is a pure function policy(weights_K, signals, step, settings) -> weights_K in float64. It knows
nothing of files, ranks or safeguards. Rates are stated per interval; `settings.num_intervals` says over how many
intervals this update acts, so updating twice as often makes two half steps.

A signal may be NaN for a domain that was never measured: it is then treated like the mean of the others, which
leaves its share alone.

Shape legend: **K** domains.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from versatune_ds.mixture.rivals import authors_code, doremi, odm, sheared
from versatune_ds.mixture.settings import PolicySettings
from versatune_ds.mixture.signals import Signals, neutral
from versatune_ds.mixture.weights import normalise

_SMALLEST_LOSS = 1e-12

Policy = Callable[[np.ndarray, Signals, int, PolicySettings], np.ndarray]


def versatune(weights_K: np.ndarray, signals: Signals, step: int, settings: PolicySettings) -> np.ndarray:
    """Return the multi-ability update: weights grow with the learnable potential, then are renormalised.

    P' = P * (1 + sigma * g)^n,  P = P' / sum P',  n = elapsed steps / interval.

    Example: P (.5, .5), g (.4, 0), sigma .5, n 1 -> (.6, .5) / 1.1 = (.5455, .4545).

    Source: VersaTune (arXiv 2411.11266), Algorithm 2; METHOD.md section 3.
    Differences from the paper: the exponent n, so that the update interval is not part of the method (1 in paper mode).
    """
    return normalise(weights_K * growth(signals, settings))


def growth(signals: Signals, settings: PolicySettings) -> np.ndarray:
    """Return (1 + sigma * g)^n, the factor [K] of one update before renormalising."""
    return (1.0 + settings.sigma * neutral(signals.learnable_potential_K)) ** settings.num_intervals


def expansion(weights_K: np.ndarray, signals: Signals, step: int, settings: PolicySettings) -> np.ndarray:
    """Return the domain-expansion update: the target gains while the others do not forget.

    Is tolerated (mean of f over the others < epsilon * g_target * n):  P_e = min(P_e + delta * n, cap).
    Otherwise P_e is kept (`hold`), or all domains follow `versatune` (`multi_ability`).
    The others follow `versatune` among themselves and fill 1 - P_e.

    Source: VersaTune (arXiv 2411.11266), Algorithm 3; METHOD.md section 4.
    Differences from the paper: f is the change over one update, so n scales what is tolerated as it scales delta
    (1 in paper mode); the otherwise branch and the others' rescaling are choices, the paper's text was not at hand.
    """
    target_id = settings.target_id
    assert target_id is not None, "policy_settings resolves the target of a targeted policy"
    is_tolerated = is_forgetting_tolerated(signals, settings)
    if not is_tolerated and settings.otherwise == "multi_ability":
        return versatune(weights_K, signals, step, settings)
    target_weight = float(weights_K[target_id])
    if is_tolerated:  # a target that starts above the cap is not cut here: that is the safeguard's to say
        target_weight = max(target_weight, min(_target_weight_wanted(weights_K, settings), settings.cap))
    grown_K = weights_K * growth(signals, settings)
    grown_K[target_id] = 0.0
    if grown_K.sum() <= 0:  # the target already had everything: the others, if they must get a share, share equally
        grown_K = np.ones_like(weights_K)
        grown_K[target_id] = 0.0
    weights_after_K = normalise(grown_K) * (1.0 - target_weight)
    weights_after_K[target_id] = target_weight
    return weights_after_K


def _target_weight_wanted(weights_K: np.ndarray, settings: PolicySettings) -> float:
    """Return P_e + delta * n, what the target would get without a cap."""
    assert settings.target_id is not None, "policy_settings resolves the target of a targeted policy"
    return float(weights_K[settings.target_id]) + settings.delta * settings.num_intervals


def is_target_capped(weights_K: np.ndarray, signals: Signals, settings: PolicySettings) -> bool:
    """Return whether the cap of `expansion` cuts what its target gains in this update, or stops it."""
    is_cut = _target_weight_wanted(weights_K, settings) > settings.cap >= weights_K[settings.target_id]
    return bool(is_cut) and is_forgetting_tolerated(signals, settings)


def is_forgetting_tolerated(signals: Signals, settings: PolicySettings) -> bool:
    """Return whether the non-targets forget little enough for the target to gain."""
    forgetting, tolerated = forgetting_against_tolerance(signals, settings)
    return forgetting < tolerated


def forgetting_against_tolerance(signals: Signals, settings: PolicySettings) -> tuple[float, float]:
    """Return the others' mean forgetting degree and epsilon * the target's potential * n."""
    is_other_K = np.arange(len(signals.loss_K)) != settings.target_id
    potential = float(neutral(signals.learnable_potential_K)[settings.target_id])
    forgetting = float(np.mean(np.nan_to_num(signals.forgetting_degree_K[is_other_K])))
    return forgetting, settings.epsilon * potential * settings.num_intervals


def fixed(weights_K: np.ndarray, signals: Signals, step: int, settings: PolicySettings) -> np.ndarray:
    """Return the starting mixture: a baseline that never moves.

    Which mixture that is (uniform, prior, inverse of the prior, data sizes, the target's share) is `starting_weights`'
    to say.

    Source: VersaTune (arXiv 2411.11266), baselines; METHOD.md section 5.
    Differences from the paper: a share is one of tokens unless `mixture.weight_unit` is `examples`, the paper's unit.
    """
    return settings.start_weights_K


def schedule(weights_K: np.ndarray, signals: Signals, step: int, settings: PolicySettings) -> np.ndarray:
    """Return the weights of the stage that `step` (the step they take effect) lies in.

    Approximate: a stage begins at the first update that takes effect at or after its step.
    """
    return [stage_K for first_step, stage_K in settings.stages if first_step <= step][-1]


def steer(weights_K: np.ndarray, signals: Signals, step: int, settings: PolicySettings) -> np.ndarray:
    """Return weights moved towards what is left to learn, anchored in the starting mixture.

    P <- (1 - a) P + a T,  a = 1 - (1 - rate)^n,  T = m * e / sum e + (1 - m) * P(0),
    e = max(l - l_reference, 0) in nats per loss token, or its share of the loss (the paper's g) where `steer.potential`
    is `relative`;  m = (1 - anchor) * min(sum e / its standard error, 1), so that what is within the noise of the
    losses moves less, and a mixture with nothing left to learn goes back to its start.
    A domain whose loss was never measured (no held-out rows) keeps the share it started with, as a target does.
    T depends on the losses of now alone and leaves every domain `anchor` of its starting share: nothing drifts or
    collapses. With a target, that domain keeps the share it started with (`mixture.target_share`), and the others do
    this among themselves.

    Example: P = P(0) = (.5, .5), e (.6, .2), anchor .5, rate .4, n 1 -> T = (.625, .375), P = (.55, .45).

    Source: METHOD.md section 12.
    Differences from the paper: the rule; its reference losses are the signal here too. benchmarks/results/comparisons
    compares the two.
    """
    left_K, target_id = left_to_learn(signals, settings), settings.target_id
    is_kept_K = _is_unmeasured(signals)
    if target_id is not None:
        is_kept_K[target_id] = True
    left, noise = float(left_K.sum()), _noise_of_sum(signals, settings)
    moving = (1.0 - settings.anchor) * (min(left / noise, 1.0) if noise > 0 else float(left > 0))
    tracked_K = (1.0 - moving) * settings.start_weights_K
    if left > 0:
        kept_share = float(settings.start_weights_K[is_kept_K].sum())
        tracked_K = tracked_K + moving * (1.0 - kept_share) * normalise(left_K)
    tracked_K[is_kept_K] = settings.start_weights_K[is_kept_K]
    share = 1.0 - (1.0 - settings.rate) ** settings.num_intervals
    return (1.0 - share) * weights_K + share * tracked_K


def left_to_learn(signals: Signals, settings: PolicySettings) -> np.ndarray:
    """Return what `steer` tracks, [K]: loss above its reference in nats, or as a share of the loss.

    It is 0 for a target, and for a domain whose loss was never measured.
    """
    if settings.potential == "relative":
        left_K = neutral(signals.learnable_potential_K).copy()
    else:
        left_K = neutral(np.maximum(signals.loss_K - signals.reference_loss_K, 0.0))
    left_K[_is_unmeasured(signals)] = 0.0
    if settings.target_id is not None:
        left_K[settings.target_id] = 0.0
    return left_K


def _is_unmeasured(signals: Signals) -> np.ndarray:
    """Return which domains have no measured loss, bool [K]."""
    return np.isnan(signals.loss_K)


def _noise_of_sum(signals: Signals, settings: PolicySettings) -> float:
    """Return the standard error of the sum of what is left to learn; 0 where errors are unknown."""
    stderr_K = np.nan_to_num(signals.loss_stderr_K)
    if settings.potential == "relative":
        stderr_K = stderr_K / np.maximum(np.nan_to_num(signals.loss_K, nan=1.0), _SMALLEST_LOSS)
    return float(np.sqrt(np.sum(stderr_K**2)))


POLICIES: dict[str, Policy] = {
    "versatune": versatune,
    "expansion": expansion,
    "steer": steer,
    "uniform": fixed,
    "constant": fixed,
    "inverse": fixed,
    "proportional": fixed,
    "target_only": fixed,
    "target_uniform": fixed,
    "schedule": schedule,
    "authors_code": authors_code,
    "doremi": doremi,
    "sheared": sheared,
    "odm": odm,
}
