"""Compute what the policies act on: learnable potential and forgetting, from losses and their history.

Potential enters every rule of the paper. Forgetting against the *previous* measurement enters domain expansion alone;
forgetting against the best and the first loss is reported and never mixed into it.

Source: VersaTune (arXiv 2411.11266), figure of the pipeline; docs/method.md section 2.

Shape legend: **K** domains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from versatune_ds.mixture.followed_plan import FollowedPlan
from versatune_ds.mixture.measurement import Measurement
from versatune_ds.mixture.policies.signals import Signals, from_list, to_list


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class History:
    """Earlier losses that later signals need; a value, replaced at every accepted measurement."""

    signals: Signals
    """The last signals; its `loss_K` is "the previous loss"."""
    best_K: np.ndarray
    """Lowest loss of each domain so far, NaN before its first."""
    start_K: np.ndarray
    """First loss of each domain, NaN before it."""

    @classmethod
    def empty(cls, num_domains: int) -> History:
        """Return the history of a run that has measured nothing."""
        unknown_K = np.full(num_domains, np.nan)
        return cls(signals=Signals.unknown(num_domains), best_K=unknown_K, start_K=unknown_K)

    def started(self, measurement: Measurement) -> History:
        """Return the history with the first losses of domains that had none."""
        return replace(self, start_K=np.where(np.isnan(self.start_K), measurement.loss_K, self.start_K))

    def after(self, signals: Signals) -> History:
        """Return the history once an update's signals are known."""
        return replace(self, signals=signals, best_K=np.fmin(self.best_K, signals.loss_K))

    def state_dict(self) -> dict[str, Any]:
        """Return JSON-able state."""
        return {
            "signals": self.signals.state_dict(),
            "best_K": to_list(self.best_K),
            "start_K": to_list(self.start_K),
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> History:
        """Return the history of a `state_dict`."""
        return cls(
            signals=Signals.from_state_dict(state["signals"]),
            best_K=from_list(state["best_K"]),
            start_K=from_list(state["start_K"]),
        )


def learnable_potential(loss_K: np.ndarray, reference_loss_K: np.ndarray) -> np.ndarray:
    """Return g = max((l - r) / l, 0): the share of the loss above its reference, [K] in [0, 1).

    NaN where the loss or the reference is unknown; 0 for a loss of 0.
    Source: VersaTune, figure of the pipeline (verified); docs/method.md section 2.
    Differences from the paper: none in the formula; r is a held-out loss.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        relative_K = (loss_K - reference_loss_K) / loss_K
    return np.where(loss_K <= 0, 0.0, np.maximum(relative_K, 0.0))


def forgetting_degree(
    loss_K: np.ndarray, earlier_K: np.ndarray, *, change_stderr_K: np.ndarray, z: float
) -> np.ndarray:
    """Return f = max((l - l_earlier - z * stderr) / l_earlier, 0), [K]; 0 where there is no earlier loss.

    Source: VersaTune, figure of the pipeline (verified, with z = 0); docs/method.md sections 2 and 8.
    Differences from the paper: the lower bound. max(., 0) of a noisy difference is positive by itself: with relative
    noise s in each loss its mean is 0.56 s without any forgetting. An unknown standard error counts as 0.
    """
    rise_K = loss_K - earlier_K - z * np.nan_to_num(change_stderr_K)
    with np.errstate(invalid="ignore", divide="ignore"):
        degree_K = np.maximum(rise_K / earlier_K, 0.0)
    return np.where(np.isfinite(degree_K), degree_K, 0.0)


def signals_from(
    measurement: Measurement,
    *,
    history: History,
    reference_loss_K: np.ndarray,
    weights_K: np.ndarray,
    update: int,
    z: float,
    step: int = 0,
    plan: FollowedPlan | None = None,
) -> Signals:
    """Return the signals of a measurement whose present domains all have finite losses.

    Args:
        measurement: The new measurement.
        history: Earlier losses; its `start_K` may be of this measurement already, which then is no change.
        reference_loss_K: Reference losses [K], NaN where the policy has none.
        weights_K: Weights decided before this update.
        update: Number of this update; 0 is the measurement before training.
        z: Standard errors subtracted from a rise before it counts as forgetting.
        step: Optimizer steps done.
        plan: The plan that the run follows, if any.
    """

    def forgetting(earlier_K: np.ndarray, change_stderr_K: np.ndarray) -> np.ndarray:
        return forgetting_degree(measurement.loss_K, earlier_K, change_stderr_K=change_stderr_K, z=z)

    earlier = history.signals
    measured = Signals(
        update=update,
        loss_K=measurement.loss_K,
        loss_stderr_K=measurement.loss_stderr_K,
        reference_loss_K=reference_loss_K,
        learnable_potential_K=learnable_potential(measurement.loss_K, reference_loss_K),
        forgetting_degree_K=forgetting(earlier.loss_K, measurement.change_stderr_K),
        forgetting_from_best_K=forgetting(history.best_K, measurement.change_from_best_stderr_K),
        forgetting_from_start_K=forgetting(history.start_K, measurement.change_from_start_stderr_K),
        change_stderr_K=measurement.change_stderr_K,
        change_from_best_stderr_K=measurement.change_from_best_stderr_K,
        change_from_start_stderr_K=measurement.change_from_start_stderr_K,
        loss_per_weight_sum_K=_with_loss_per_weight(
            earlier.loss_per_weight_sum_K, loss_K=measurement.loss_K, weights_K=weights_K, update=update
        ),
        **_planned(measurement, plan=plan, start_K=history.start_K, step=step, z=z),
    )
    is_present_K = measurement.is_present()
    kept = {
        name: np.where(is_present_K, getattr(measured, name), getattr(earlier, name)) for name in Signals.vector_names()
    }
    return replace(measured, **kept)


def _planned(
    measurement: Measurement, *, plan: FollowedPlan | None, start_K: np.ndarray, step: int, z: float
) -> dict[str, np.ndarray]:
    """Return what the plan says of this step, by the name of the signal."""
    if plan is None:
        unknown_K = np.full(len(start_K), np.nan)
        return {"track_loss_K": unknown_K, "track_stderr_K": unknown_K, "planned_rise_K": unknown_K}
    ratio_K, stderr_K = plan.ratio_at(step)
    return {
        "track_loss_K": start_K * ratio_K,
        "track_stderr_K": start_K * stderr_K,
        "planned_rise_K": plan.rise_at_end(
            measurement.loss_K / start_K, measurement.change_from_start_stderr_K / start_K, step=step, z=z
        ),
    }


def _with_loss_per_weight(sum_K: np.ndarray, *, loss_K: np.ndarray, weights_K: np.ndarray, update: int) -> np.ndarray:
    """Return the sums [K] with this update's loss / weight; the measurement before training adds nothing."""
    sum_K = np.nan_to_num(sum_K)
    return sum_K if update == 0 else sum_K + np.divide(loss_K, weights_K, out=np.zeros_like(sum_K), where=weights_K > 0)
