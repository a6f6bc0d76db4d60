"""The signals that a policy acts on: what one update knows about every domain's loss.

mixture/signals.py computes them from measurements. This file has the value alone, so that a rule needs no other import.

Shape legend: **K** domains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Signals:
    """One update's signals, float64 vectors [K]; a domain absent from the measurement keeps its previous ones."""

    update: int
    """Number of the update; 0 is the measurement before training."""
    loss_K: np.ndarray
    """Mean loss, nats per loss token."""
    loss_stderr_K: np.ndarray
    """Its standard error; NaN where unknown."""
    reference_loss_K: np.ndarray
    """Reference loss, NaN for policies without references."""
    learnable_potential_K: np.ndarray
    """The paper's g, in [0, 1)."""
    forgetting_degree_K: np.ndarray
    """The paper's f against the previous measurement, its lower bound at z standard errors."""
    forgetting_from_best_K: np.ndarray
    """The same against the domain's best earlier loss."""
    forgetting_from_start_K: np.ndarray
    """The same against its first loss."""
    change_stderr_K: np.ndarray
    """Standard error of the loss's change since the previous measurement."""
    change_from_best_stderr_K: np.ndarray
    """The same since the best."""
    change_from_start_stderr_K: np.ndarray
    """The same since the first."""
    loss_per_weight_sum_K: np.ndarray
    """Sum over updates of loss / weight: the importance-weighted losses of a bandit."""
    track_loss_K: np.ndarray
    """The loss that the plan predicts for this step; NaN without a plan that the run follows."""
    track_stderr_K: np.ndarray
    """Its standard error."""
    planned_rise_K: np.ndarray
    """Rise of the loss over its first one that plan and measurement together expect at the end of the run, as a share
    of that; its lower bound at z standard errors. NaN without a plan that the run follows."""

    @classmethod
    def vector_names(cls) -> tuple[str, ...]:
        """Return the names of the fields with one value a domain."""
        return tuple(field.name for field in fields(cls) if field.name.endswith("_K"))

    @classmethod
    def unknown(cls, num_domains: int) -> Signals:
        """Return signals of nothing measured yet: NaN everywhere."""
        return cls(update=-1, **{name: np.full(num_domains, np.nan) for name in cls.vector_names()})

    def state_dict(self) -> dict[str, Any]:
        """Return JSON-able lists by field name; NaN becomes null."""
        return {"update": self.update} | {name: to_list(getattr(self, name)) for name in self.vector_names()}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Signals:
        """Return the signals of a `state_dict`; vectors that an earlier version did not have are unknown."""
        unknown = [None] * len(state["loss_K"])  # states of earlier versions have no plan
        return cls(update=state["update"], **{name: from_list(state.get(name, unknown)) for name in cls.vector_names()})


def to_list(values_K: np.ndarray) -> list[float | None]:
    """Return plain numbers, null for NaN."""
    return [None if np.isnan(value) else float(value) for value in values_K]


def from_list(values: list[float | None]) -> np.ndarray:
    """Return the float64 vector of `to_list`."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
