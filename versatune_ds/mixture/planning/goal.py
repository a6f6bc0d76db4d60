"""What a plan should achieve, and what it must not do: the purpose, and how far each domain's loss may rise.

Two mixtures are compared by their excess first, then by the purpose. The excess is how far the worst domain lies beyond
its bound, as a share of the base model's loss: 0 where every bound is met. So where no mixture meets the bounds, the
best one is the one that breaks them least.

Shape legend: **N** mixtures, **K** domains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from versatune_ds.domains import DomainSet, nearest_name
from versatune_ds.mixture.planning.predictor import Predicted

Purpose = Literal["mean", "balanced", "target"]
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)

DEFAULT_BOUNDS: Mapping[Purpose, float] = {"mean": math.inf, "balanced": 0.0, "target": 0.02}
"""How far a domain's loss may rise above the base model's, as a share of it, where no bound is given. A balanced plan
may let it rise as far as the worst domain does on equal shares, see `worst_rise`."""

TOLERANCE = 1e-6
"""Excess that still counts as none, for rounding in the optimiser: a millionth of the loss."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Goal:
    """The purpose of a plan and its bounds."""

    purpose: Purpose
    base_losses_K: np.ndarray
    """Held-out losses of the base model; NaN for a domain without held-out rows."""
    bounds_K: np.ndarray
    """Largest relative rise of each domain's loss; infinite for none."""
    target_id: int | None = None
    """The domain to strengthen, with the purpose `target`."""

    def changes(self, predicted: Predicted) -> np.ndarray:
        """Return the predicted change of each loss as a share of the base model's, [N,K]."""
        return predicted.losses_NK / self.base_losses_K - 1.0

    def objective(self, predicted: Predicted) -> np.ndarray:
        """Return what is to be small, [N]: the mean loss of the measured domains, or the change of the target's."""
        if self.target_id is not None:
            return self.changes(predicted)[:, self.target_id]
        return np.nanmean(predicted.losses_NK, axis=1)

    def excess(self, predicted: Predicted) -> np.ndarray:
        """Return how far each domain lies beyond its bound, [N,K]; negative within it, -inf where it has none."""
        risen_NK = self.changes(predicted)
        return np.where(np.isnan(risen_NK), -np.inf, risen_NK - self.bounds_K)

    def worst_excess(self, predicted: Predicted) -> np.ndarray:
        """Return the excess of the worst domain, [N]; 0 where every bound is met."""
        worst_N = np.max(self.excess(predicted), axis=1)
        return np.where(worst_N > TOLERANCE, worst_N, 0.0)

    def order(self, predicted: Predicted) -> np.ndarray:
        """Return the indices of the mixtures, best first, [N]; of equal ones the earlier first."""
        return np.lexsort((self.objective(predicted), self.worst_excess(predicted)))


def worst_rise(losses_K: np.ndarray, base_losses_K: np.ndarray) -> tuple[int, float]:
    """Return the domain whose loss rises most above the base model's, and its rise as a share, at least 0.

    Args:
        losses_K: Losses after a run, nats per loss token; NaN for a domain without held-out rows.
        base_losses_K: Losses before it.
    """
    rises_K = losses_K / base_losses_K - 1.0
    worst_id = int(np.nanargmax(rises_K))
    return worst_id, max(float(rises_K[worst_id]), 0.0)


def goal_of(
    purpose: Purpose,
    *,
    domain_set: DomainSet,
    base_losses_K: np.ndarray,
    target: str | None,
    bound_all: float | None = None,
    bounds: Mapping[str, float] | None = None,
) -> Goal:
    """Return a goal from what a user asked for.

    Args:
        purpose: What to achieve.
        domain_set: The domains.
        base_losses_K: Held-out losses of the base model, NaN where unmeasured.
        target: `mixture.target`; read with the purpose `target` alone.
        bound_all: Bound of every domain that `bounds` does not name; None takes the purpose's default. The target has
            none.
        bounds: Bounds by domain.

    Raises:
        ValueError: If a domain is unknown or unmeasured, or the purpose needs a target and there is none.
    """
    target_id = _target_id(target, domain_set) if purpose == "target" else None
    is_measured_K = ~np.isnan(base_losses_K)
    default = DEFAULT_BOUNDS[purpose] if bound_all is None else bound_all
    bounds_K = np.where(is_measured_K, default, math.inf)
    if target_id is not None:
        bounds_K[target_id] = math.inf
        _check_measured(domain_set.names[target_id], "mixture.target", domain_set, is_measured_K)
    for name, bound in (bounds or {}).items():
        if name not in domain_set.names:
            raise ValueError(f"--bound {name}={bound:g}: unknown domain; {nearest_name(name, domain_set.names)}")
        _check_measured(name, f"--bound {name}={bound:g}", domain_set, is_measured_K)
        bounds_K[domain_set.id_of(name)] = bound
    return Goal(purpose=purpose, base_losses_K=base_losses_K, bounds_K=bounds_K, target_id=target_id)


def _target_id(target: str | None, domain_set: DomainSet) -> int:
    if target is None:
        raise ValueError(
            "--for target: mixture.target is not set; name the domain to strengthen, such as "
            f"mixture.target={domain_set.names[0]}"
        )
    if target not in domain_set.names:
        raise ValueError(f"mixture.target: unknown domain {target!r}; {nearest_name(target, domain_set.names)}")
    return domain_set.id_of(target)


def _check_measured(name: str, key: str, domain_set: DomainSet, is_measured_K: np.ndarray) -> None:
    if not is_measured_K[domain_set.id_of(name)]:
        raise ValueError(f"{key}: {name} has no held-out rows, so its loss is unknown; give it some in `valid`")
