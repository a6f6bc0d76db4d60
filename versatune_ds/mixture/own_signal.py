"""A signal of the user's own: a function that supplies the number of each domain that decisions use as its loss.

`mixture.signal: my_module:my_signal` names it, `versatune_ds.train(signal=...)` passes it. Any number works that is
lower where a domain is better: a held-out loss times a factor, the share of wrong answers, the cost of mistakes. Its
unit is the user's, and reference losses must have the same. Only what it returned enters a decision, with the signal's
name among the inputs, so `replay` and `explain` need no function.

`training/signal_function.py` calls it. Shape legend: **K** domains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from versatune_ds.domains import DomainSet, nearest_name
from versatune_ds.json_file import is_finite_number
from versatune_ds.mixture.measurement import Measurement

KEY = "mixture.signal"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DomainLosses:
    """What a signal returns: one number a domain, at least 0 and lower where the domain is better."""

    mean: Mapping[str, float | None]
    """Domain to its number; None where it was not measured this time. Every domain of the run is in it."""
    stderr: Mapping[str, float | None] | None = None
    """Domain to the standard error of that number, None where it is unknown. A rise within
    `mixture.safeguards.z` errors does not count as forgetting; without errors every rise counts."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OwnLosses:
    """What a signal returned, checked."""

    name: str
    """The signal's `mixture.signal`."""
    loss_K: np.ndarray
    """float64, NaN for a domain that was not measured."""
    stderr_K: np.ndarray
    """float64, NaN where unknown."""

    def measurement(self, *, previous_stderr_K: np.ndarray) -> Measurement:
        """Return the measurement that a decision is made on. Changes count as unpaired; tokens are 1 where measured.

        Args:
            previous_stderr_K: Standard errors of the previous measurement, NaN before the first.
        """
        return Measurement.unpaired(
            self.loss_K,
            loss_stderr_K=self.stderr_K,
            num_loss_tokens_K=(~np.isnan(self.loss_K)).astype(np.int64),
            change_stderr_K=np.hypot(self.stderr_K, previous_stderr_K),
        )


def checked_losses(returned: Any, *, name: str, where: str, domain_set: DomainSet) -> OwnLosses:
    """Return what a signal returned as vectors.

    Args:
        returned: `DomainLosses`, or a mapping from domain to number.
        name: The signal's `mixture.signal`.
        where: File and line of the function, for messages.
        domain_set: The run's domains.

    Raises:
        ValueError: If it is something else, or lacks a domain, has an unknown one, or a number that is not finite or
            below 0.
    """
    what = f"{KEY}: {name} ({where})"
    losses = DomainLosses(mean=returned) if isinstance(returned, Mapping) else returned
    if not isinstance(losses, DomainLosses):
        raise ValueError(
            f"{what} returned {_described(returned)}: expected DomainLosses, or a mapping from domain to number; write "
            "dict(zip(context.domain_names, numbers))"
        )
    loss_K = _column(losses.mean, what=f"{what}: mean", domain_set=domain_set)
    stderr_K = np.full(len(domain_set), np.nan)
    if losses.stderr is not None:
        stderr_K = _column(losses.stderr, what=f"{what}: stderr", domain_set=domain_set)
    return OwnLosses(name=name, loss_K=loss_K, stderr_K=stderr_K)


def _column(values: Any, *, what: str, domain_set: DomainSet) -> np.ndarray:
    """Return the numbers of all domains, float64 [K], NaN for None."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{what}: expected a mapping from domain to number, got {_described(values)}")
    for key in values:
        if key not in domain_set.names:
            raise ValueError(f"{what}: unknown domain {key!r}; {nearest_name(str(key), domain_set.names)}")
    missing = [key for key in domain_set if key not in values]
    if missing:
        raise ValueError(f"{what}: expected a number of every domain, {', '.join(missing)} missing; None: not measured")
    column_K = np.full(len(domain_set), np.nan)
    for i, key in enumerate(domain_set):
        value = _as_number(values[key])
        if value is None:
            continue
        if not is_finite_number(value) or value < 0:
            raise ValueError(
                f"{what}: {key}: expected a finite number of at least 0, or None if it was not measured, got "
                f"{_described(value) if hasattr(value, 'shape') else repr(value)}"
            )
        column_K[i] = value
    return column_K


def _as_number(value: Any) -> Any:
    """Return a number of numpy or torch as one of Python, and anything else as it is."""
    shape = getattr(value, "shape", None)
    return value.item() if shape is not None and math.prod(shape) == 1 else value


def _described(value: Any) -> str:
    """Return what a value is, in few words."""
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"{type(value).__name__} of shape {tuple(shape)}"
