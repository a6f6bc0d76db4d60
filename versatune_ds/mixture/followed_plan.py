"""The plan that a run follows: where each domain's loss should be at every step, and how far it may rise.

A plan predicts shares of the base model's losses. Here they are shares of the run's own first losses, so that a run
whose held-out examples are a subset of those of the plan is not ahead or behind before it has begun.

Source: docs/method.md section 13.

Shape legend: **K** domains, **S** points of the track.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from versatune_ds.config import MixtureConfig
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.planning.plan_file import Plan
from versatune_ds.mixture.policies.signals import Signals, from_list, to_list
from versatune_ds.mixture.settings import uniform_share


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FollowedPlan:
    """A plan's track as shares of the first losses, rescaled to a run's length, and its bounds."""

    num_steps: int
    """Optimizer steps of the run."""
    fractions_S: np.ndarray
    """float64, points of the track as fractions of the run, from 0 to 1; empty where the planner predicts none."""
    ratios_SK: np.ndarray
    """float64, predicted loss as a share of the first one: 1 at fraction 0; NaN for a domain without held-out rows."""
    ratio_stderrs_SK: np.ndarray
    """float64, standard errors of the same."""
    end_ratio_K: np.ndarray
    """float64, predicted loss at the end as a share of the first one; known without a track too."""
    end_stderr_K: np.ndarray
    """float64, its standard error."""
    bounds_K: np.ndarray
    """float64, largest rise of a loss at the end as a share of the first one; infinite for none."""

    @property
    def has_track(self) -> bool:
        """Whether losses before the end were predicted."""
        return len(self.fractions_S) > 0

    def ratio_at(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the predicted share of the first loss at a step and its standard error, each [K]; NaN if unknown.

        Between two points they lie on a straight line.
        """
        unknown_K = np.full(len(self.bounds_K), np.nan)
        if not self.has_track:
            return unknown_K, unknown_K
        fraction = step / self.num_steps
        ratio_K, stderr_K = (
            np.array([np.interp(fraction, self.fractions_S, value_S) for value_S in values_SK.T])
            for values_SK in (self.ratios_SK, self.ratio_stderrs_SK)
        )
        return ratio_K, stderr_K

    def rise_at_end(self, ratio_K: np.ndarray, ratio_stderr_K: np.ndarray, *, step: int, z: float) -> np.ndarray:
        """Return how far each loss should lie above its first one at the end, as a share of that [K]; NaN if unknown.

        x = end - 1 + p (ratio - track) - z * hypot(p stderr, (1 - p) stderr of the end),  p the share of the run done.
        Early on a loss says little of where it ends: while the learning rate warms up, all of them rise and fall again.
        So a distance from the track counts as far as the run has come, and at the end x is what was measured. Where no
        track is known, the end of the plan takes its place.

        Example: the plan ends at .98 (error .01) and is at 1.02 halfway. A loss of 1.06 then (error .02), z 1, is
        expected at .98 - 1 + .5 * .04 - hypot(.01, .005) = -.011.

        Args:
            ratio_K: Measured loss as a share of the first one.
            ratio_stderr_K: Standard error of it.
            step: Optimizer steps done.
            z: Standard errors to subtract.
        """
        progress = min(step / self.num_steps, 1.0)
        track_K = self.ratio_at(step)[0] if self.has_track else self.end_ratio_K
        noise_K = np.hypot(progress * np.nan_to_num(ratio_stderr_K), (1.0 - progress) * self.end_stderr_K)
        return self.end_ratio_K - 1.0 + progress * (ratio_K - track_K) - z * noise_K

    def state_dict(self) -> dict[str, Any]:
        """Return JSON-able state: all but the length of the run, which a resumed run may change."""
        return {
            "fractions_S": self.fractions_S.tolist(),
            "ratios_SK": [to_list(ratio_K) for ratio_K in self.ratios_SK],
            "ratio_stderrs_SK": [to_list(stderr_K) for stderr_K in self.ratio_stderrs_SK],
            "end_ratio_K": to_list(self.end_ratio_K),
            "end_stderr_K": to_list(self.end_stderr_K),
            "bounds_K": to_list(np.where(np.isfinite(self.bounds_K), self.bounds_K, np.nan)),
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], *, num_steps: int) -> FollowedPlan:
        """Return the plan of a `state_dict`, for a run of so many steps."""
        bounds_K = from_list(state["bounds_K"])
        shape = (-1, len(bounds_K))
        return cls(
            num_steps=num_steps,
            fractions_S=np.array(state["fractions_S"], dtype=np.float64),
            ratios_SK=np.array([from_list(row) for row in state["ratios_SK"]]).reshape(shape),
            ratio_stderrs_SK=np.array([from_list(row) for row in state["ratio_stderrs_SK"]]).reshape(shape),
            end_ratio_K=from_list(state["end_ratio_K"]),
            end_stderr_K=from_list(state["end_stderr_K"]),
            bounds_K=np.where(np.isnan(bounds_K), np.inf, bounds_K),
        )


def followed_plan(plan: Plan, *, domain_set: DomainSet, num_steps: int) -> FollowedPlan | None:
    """Return what a run of so many steps follows; None for a plan of an earlier version, which has no track.

    A bound that the plan itself does not keep is as wide as the plan's prediction: no mixture would keep it.

    Example: bound 0, base 2.0, predicted 2.1 -> the loss may rise by 5 %.
    """
    if plan.track is None:
        return None

    def column(values: Mapping[str, float], *, scale_K: np.ndarray) -> np.ndarray:
        return np.array([values.get(name, np.nan) for name in domain_set], dtype=np.float64) / scale_K

    ones_K = np.ones(len(domain_set))
    base_K, loss_K, stderr_K = (
        column({name: values[key] for name, values in plan.predicted.items()}, scale_K=ones_K)
        for key in ("base", "loss", "stderr")
    )
    asked_K = np.array([plan.bounds.get(name, np.inf) for name in domain_set], dtype=np.float64)
    shape = (-1, len(domain_set))
    return FollowedPlan(
        num_steps=max(num_steps, 1),
        fractions_S=np.array([point["fraction"] for point in plan.track], dtype=np.float64),
        ratios_SK=np.array([column(point["losses"], scale_K=base_K) for point in plan.track]).reshape(shape),
        ratio_stderrs_SK=np.array([column(point["stderrs"], scale_K=base_K) for point in plan.track]).reshape(shape),
        end_ratio_K=loss_K / base_K,
        end_stderr_K=stderr_K / base_K,
        bounds_K=np.fmax(asked_K, loss_K / base_K - 1.0),
    )


def plan_to_follow(
    settings: MixtureConfig, plan: Plan | None, *, domain_set: DomainSet, num_steps: int
) -> FollowedPlan | None:
    """Return what a run follows: the plan of its prior, if its policy follows one and starts from it as it is.

    A plan predicts held-out losses, so a run with another signal of the user's own has nothing to compare with it.

    Args:
        settings: The recipe's mixture section.
        plan: The plan that `mixture.prior` names; None where it names none.
        domain_set: Domains of the run.
        num_steps: Its optimizer steps.
    """
    follows = "steer.follow_plan" in settings.rule.all_reads and settings.steer.follow_plan
    if plan is None or not follows or settings.has_own_signal:
        return None
    if uniform_share(settings) > 0 or settings.prior_temperature != 1.0:
        return None
    return followed_plan(plan, domain_set=domain_set, num_steps=num_steps)


def distance_to_track(signals: Signals) -> np.ndarray:
    """Return how far each loss is behind its track (positive) or ahead of it (negative) beyond the noise, nats [K].

    The noise is one standard error of the loss's change and of the prediction together. 0 where one of them is unknown.

    Example: loss 1.50, track 1.40, errors .03 and .04 -> .10 behind, of which .05 is beyond the noise.
    """
    behind_K = np.nan_to_num(signals.loss_K - signals.track_loss_K)
    noise_K = np.hypot(np.nan_to_num(signals.change_from_start_stderr_K), np.nan_to_num(signals.track_stderr_K))
    return np.sign(behind_K) * np.maximum(np.abs(behind_K) - noise_K, 0.0)


def track_clause(signals: Signals, names: Sequence[str]) -> str:
    """Return the clause on the domains farthest behind and ahead of their track; empty where there is no track."""
    if np.all(np.isnan(signals.track_loss_K)):
        return ""
    beyond_K, behind_K = distance_to_track(signals), signals.loss_K - signals.track_loss_K
    last, first = int(np.argmax(beyond_K)), int(np.argmin(beyond_K))
    parts = []
    if beyond_K[last] > 0:
        parts.append(f"{names[last]} is {behind_K[last]:.3f} nats behind its plan")
    if beyond_K[first] < 0:
        parts.append(f"{names[first]} is {-behind_K[first]:.3f} nats ahead of its plan")
    return " and ".join(parts) or "every domain is where its plan expects it, within the noise"
