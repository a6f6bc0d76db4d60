"""Over-fitting: find domains whose held-out loss rises while their training loss falls, and lower their weight.

A held-out loss rises for two reasons. A domain that is forgotten gets too few rows of its own: its training loss rises
too, and more weight helps. A domain that over-fits repeats rows that the model knows by heart: its training loss falls,
and more weight hurts. The training loss tells them apart, so a domain is one or the other, never both.

Source: mSFT (arXiv 2603.21606), abstract: the part of the data that over-fits first is found and left out.
Differences from the paper: mSFT removes it for good, and goes back to the checkpoint at which it was best. Here its
weight is halved per interval down to the floor, the model stays as it is, and the weight is free again once the
held-out loss has come back. What counts as over-fitting is this project's: the full text was not available.

Shape legend: **K** domains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from versatune_ds.domains import DomainSet
from versatune_ds.mixture.inputs import Inputs
from versatune_ds.mixture.policies import Signals
from versatune_ds.mixture.policies.acted import Acted
from versatune_ds.mixture.policies.signals import from_list, to_list

NUM_UPDATES = 2
"""Updates in a row that must see over-fitting before it counts, and its end by the training loss: one may be chance."""

_LEAST_FALL = 0.05
"""Fall of a training loss that counts, as a share of it: batches differ, and its error assumes independent tokens."""

_SHARE_PER_INTERVAL = 0.5
"""Largest share of its weight that an over-fitting domain keeps per interval, down to the floor."""

_VECTORS = ("best_K", "train_at_best_K", "train_at_best_stderr_K", "rise_K", "fall_K")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OverfitWatch:
    """What the updates so far say about over-fitting; a value, replaced at every accepted measurement."""

    num_seen_K: np.ndarray
    """int64 in 0..NUM_UPDATES: one more for an update that saw over-fitting, one less for one that did not."""
    is_over_fitting_K: np.ndarray
    """bool, from where the count is full until it is 0, or the held-out loss has come back."""
    best_K: np.ndarray
    """float64, lowest held-out loss of the measurements that have a training loss before them; NaN before the first.
    So a domain that lost from the first step on, and recovers, does not count as over-fitting."""
    train_at_best_K: np.ndarray
    """float64, the training loss that led to it, of the steps between the measurement before it and itself."""
    train_at_best_stderr_K: np.ndarray
    """float64, its standard error."""
    rise_K: np.ndarray
    """float64, the held-out loss above `best_K`, as a share of it; a lower bound at z standard errors, at least 0."""
    fall_K: np.ndarray
    """float64, the training loss below `train_at_best_K`, as a share of it; NaN where unknown."""

    @classmethod
    def empty(cls, num_domains: int) -> OverfitWatch:
        """Return the value of a run that has measured nothing."""
        return cls(
            num_seen_K=np.zeros(num_domains, dtype=np.int64),
            is_over_fitting_K=np.zeros(num_domains, dtype=bool),
            **{name: np.full(num_domains, np.nan) for name in _VECTORS},
        )

    def after(
        self, signals: Signals, *, is_measured_K: np.ndarray, inputs: Inputs, domain_set: DomainSet, z: float
    ) -> OverfitWatch:
        """Return the value once an update's signals are known.

        Args:
            signals: Of this update, from held-out losses.
            is_measured_K: Domains in this measurement.
            inputs: Has the training losses since the last update. For a domain without one, only the held-out
                loss can end over-fitting.
            domain_set: The domains.
            z: Standard errors by which a loss must have changed.
        """
        train_K, stderr_K = (
            np.array([values.get(name, np.nan) for name in domain_set])
            for values in (inputs.train_losses, inputs.train_loss_stderrs)
        )
        loss_K, is_known_K = signals.loss_K, is_measured_K & np.isfinite(train_K)

        # What later losses are compared with: the best held-out loss, and the training loss that led to it.
        is_best_K = is_known_K & ~(loss_K >= self.best_K)
        best_K = np.where(is_best_K, loss_K, self.best_K)
        at_best_K = np.where(is_best_K, train_K, self.train_at_best_K)
        at_best_stderr_K = np.where(is_best_K, stderr_K, self.train_at_best_stderr_K)

        # Held out up and training down, both beyond noise.
        held_out_noise_K = z * np.nan_to_num(signals.change_from_best_stderr_K)
        rise_K = np.maximum(np.nan_to_num(_share_of(best_K, loss_K - best_K - held_out_noise_K)), 0.0)
        train_noise_K = z * np.hypot(np.nan_to_num(stderr_K), np.nan_to_num(at_best_stderr_K))
        has_fallen_K = train_K < np.minimum(at_best_K - train_noise_K, at_best_K * (1.0 - _LEAST_FALL))
        is_seen_K, is_back_K = (rise_K > 0) & has_fallen_K, is_measured_K & (rise_K == 0)
        num_seen_K = np.clip(self.num_seen_K + np.where(is_seen_K, 1, -1), 0, NUM_UPDATES)
        num_seen_K = np.where(is_back_K, 0, np.where(is_known_K, num_seen_K, self.num_seen_K))
        return OverfitWatch(
            num_seen_K=num_seen_K,
            is_over_fitting_K=np.where(self.is_over_fitting_K, num_seen_K > 0, num_seen_K == NUM_UPDATES),
            best_K=best_K,
            train_at_best_K=at_best_K,
            train_at_best_stderr_K=at_best_stderr_K,
            rise_K=np.where(is_measured_K, rise_K, self.rise_K),
            fall_K=np.where(is_known_K, _share_of(at_best_K, at_best_K - train_K), self.fall_K),
        )

    def without_rises(self, signals: Signals) -> Signals:
        """Return signals in which no domain seen to over-fit counts as forgotten: more of its rows would harm it."""
        unforgotten = {"forgetting_from_best_K": 0.0, "forgetting_from_start_K": 0.0, "planned_rise_K": np.nan}
        is_seen_K = self.num_seen_K > 0
        return replace(
            signals,
            **{name: np.where(is_seen_K, value, getattr(signals, name)) for name, value in unforgotten.items()},
        )

    def state_dict(self) -> dict[str, Any]:
        """Return JSON-able state."""
        return {
            "num_seen_K": self.num_seen_K.tolist(),
            "is_over_fitting_K": self.is_over_fitting_K.tolist(),
            **{name: to_list(getattr(self, name)) for name in _VECTORS},
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any] | None, *, num_domains: int) -> OverfitWatch:
        """Return the value of a `state_dict`; checkpoints of earlier versions have none."""
        if state is None:
            return cls.empty(num_domains)
        return cls(
            num_seen_K=np.array(state["num_seen_K"], dtype=np.int64),
            is_over_fitting_K=np.array(state["is_over_fitting_K"], dtype=bool),
            **{name: from_list(state[name]) for name in _VECTORS},
        )


def _share_of(loss_K: np.ndarray, change_K: np.ndarray) -> np.ndarray:
    """Return a change as a share of a loss, [K]; NaN where the loss is unknown or 0."""
    return np.divide(change_K, loss_K, out=np.full(loss_K.shape, np.nan), where=loss_K > 0)


def over_fitting_texts(watch: OverfitWatch, *, domain_set: DomainSet) -> dict[str, str]:
    """Describe every domain that over-fits, by name."""
    return {
        domain_set.names[k]: f"held-out loss +{watch.rise_K[k]:.1%} from its best, training loss -{watch.fall_K[k]:.1%}"
        for k in np.flatnonzero(watch.is_over_fitting_K)
    }


def over_fitting_warning(watch: OverfitWatch, *, domain_set: DomainSet) -> tuple[Acted, ...]:
    """Return a record of the domains that over-fit, which changes no weight; empty if none."""
    found = over_fitting_texts(watch, domain_set=domain_set)
    if not found:
        return ()
    listed = ", ".join(f"{name} ({text})" for name, text in found.items())
    return (Acted("over-fitting", tuple(found), f"over-fitting: {listed}, reported only"),)


def over_fitting_ended(before: OverfitWatch, after: OverfitWatch, *, domain_set: DomainSet) -> tuple[Acted, ...]:
    """Return a record of the domains that over-fitted before and no longer do; empty if none."""
    names = tuple(domain_set.names[k] for k in np.flatnonzero(before.is_over_fitting_K & ~after.is_over_fitting_K))
    if not names:
        return ()
    return (Acted("over-fitting ended", names, f"over-fitting ended: {', '.join(names)}"),)


def reduce_over_fitting(
    weights_K: np.ndarray,
    *,
    before_K: np.ndarray,
    watch: OverfitWatch,
    floor: float,
    num_intervals: float,
    domain_set: DomainSet,
) -> tuple[np.ndarray, tuple[Acted, ...]]:
    """Cap the weight of every over-fitting domain; the others share what it gives up, in proportion to their weights.

    The cap is half the weight it had, per interval, and never below the floor. Where every domain over-fits there is
    none to give the weight to: the weights stay as proposed.

    Example: (.5, .3, .2), the first over-fits and had .5, one interval: (.25, .45, .30).

    Args:
        weights_K: Weights as proposed.
        before_K: Weights decided before.
        watch: Which domains over-fit.
        floor: Smallest weight of a domain.
        num_intervals: Length of this update in intervals.
        domain_set: The domains.
    """
    over_K = watch.is_over_fitting_K
    if not np.any(over_K):
        return weights_K, ()
    others = float(weights_K[~over_K].sum())
    if others <= 0.0:
        return weights_K, over_fitting_warning(watch, domain_set=domain_set)
    cap_K = np.maximum(before_K * _SHARE_PER_INTERVAL**num_intervals, floor)
    capped_K = np.where(over_K, np.minimum(weights_K, cap_K), weights_K)
    room = 1.0 - float(capped_K[over_K].sum())
    reduced_K = np.where(over_K, capped_K, weights_K * (room / others))
    found = over_fitting_texts(watch, domain_set=domain_set)
    listed = ", ".join(f"{name} ({text}) at most {cap_K[domain_set.id_of(name)]:.4f}" for name, text in found.items())
    return reduced_K, (Acted("over-fitting", tuple(found), f"over-fitting: {listed}"),)
