"""`steer`, the default rule: move towards what is left to learn, anchored in the starting mixture.

Shape legend: **K** domains.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from versatune_ds.mixture.policies.policy import (
    Policy,
    PolicySettings,
    Start,
    arxiv,
    from_prior,
    nats_clause,
    potential_clause,
)
from versatune_ds.mixture.policies.signals import Signals
from versatune_ds.mixture.policies.simplex import neutral, normalise, with_share

_SMALLEST_LOSS = 1e-12


def update(weights_K: np.ndarray, signals: Signals, step: int, settings: PolicySettings) -> np.ndarray:
    """Return weights moved towards what is left to learn.

    P <- (1 - a) P + a T,  a = 1 - (1 - rate)^n,  T = m * e / sum e + (1 - m) * P(0),
    e = max(l - l_reference, 0) in nats per loss token, or its share of the loss (the paper's g) where `steer.potential`
    is `relative`;  m = (1 - anchor) * min(sum e / its standard error, 1), so that differences within the noise of the
    losses move the weights less, and a mixture with nothing left to learn returns to its start.
    T depends on the current losses alone and leaves every domain `anchor` of its starting share: nothing drifts or
    collapses. A target keeps the share it started with (`mixture.target_share`), and the others do this among
    themselves. A domain whose loss was never measured (no held-out rows) keeps the share it started with too.

    Example: P = P(0) = (.5, .5), e (.6, .2), anchor .5, rate .4, n 1 -> T = (.625, .375), P = (.55, .45).
    """
    # What is left to learn, and which domains keep their starting share.
    left_K = left_to_learn(signals, settings)
    is_kept_K = np.isnan(signals.loss_K)
    if settings.target_id is not None:
        is_kept_K[settings.target_id] = True

    # The mixture to move towards; less of it follows the losses where they are within their noise.
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
    """Return what `steer` tracks [K]: loss above its reference in nats, or as a share of the loss.

    It is 0 for a target, and for a domain whose loss was never measured.
    """
    if settings.potential == "relative":
        left_K = neutral(signals.learnable_potential_K).copy()
    else:
        left_K = neutral(np.maximum(signals.loss_K - signals.reference_loss_K, 0.0))
    left_K[np.isnan(signals.loss_K)] = 0.0
    if settings.target_id is not None:
        left_K[settings.target_id] = 0.0
    return left_K


def _noise_of_sum(signals: Signals, settings: PolicySettings) -> float:
    """Return the standard error of the sum of what is left to learn; 0 where errors are unknown."""
    stderr_K = np.nan_to_num(signals.loss_stderr_K)
    if settings.potential == "relative":
        stderr_K = stderr_K / np.maximum(np.nan_to_num(signals.loss_K, nan=1.0), _SMALLEST_LOSS)
    return float(np.sqrt(np.sum(stderr_K**2)))


def _start(start: Start) -> np.ndarray:
    """Return the blended prior, with the target's given share where there is a target."""
    start_K = from_prior(start)
    return start_K if start.target_id is None else with_share(start_K, start.target_id, share=start.target_share)


def _explain(signals: Signals, settings: PolicySettings, names: Sequence[str]) -> str:
    """Return which domains have most and least left to learn, in the measure that is tracked."""
    if settings.potential == "relative":
        return potential_clause(signals, settings, names)
    return nats_clause(signals, settings, names)


STEER = Policy(
    name="steer",
    update=update,
    start=_start,
    uniform_share=0.5,  # from the prior alone it learns weak domains too late, from uniform it forgets the strong ones
    needs_references=True,
    target="optional",
    has_given_target_share=True,
    decides_before_training=True,
    is_in_paper_mode=False,
    reads=(
        "prior",
        "prior_temperature",
        "prior_uniform_share",
        "steer.rate",
        "steer.anchor",
        "steer.potential",
        "steer.follow_plan",
        "target",
        "target_share",
    ),
    live_rates=("rate", "anchor"),
    measure=lambda setting: "potential" if setting("steer.potential") == "relative" else "nats",
    explain=_explain,
    when_still=(
        "what is left to learn is spread like the start, mixture.steer.rate is small or mixture.steer.anchor near 1"
    ),
    when_collapsing="raise mixture.steer.anchor",
    method=(
        "`versatune_ds`, whose data mixture moves while the model trains, by a rule of its own, with the reference "
        f"losses of {arxiv('VersaTune', '2411.11266')}"
    ),
    citation="The software and its rule `steer`: `versatune_ds`; the reference losses: VersaTune, arXiv 2411.11266",
    source="docs/method.md section 12",
    differences=(
        "It is not the paper's rule; the paper's reference losses are its signal too. benchmarks/results/comparisons "
        "compares the two."
    ),
)
