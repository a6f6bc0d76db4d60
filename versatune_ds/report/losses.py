"""Read a run's losses by domain: of held-out examples, of training batches, and of the reference.

Held-out and training losses are separate series. Under `mixture.signal: train` the decisions record losses of training
batches, and held-out examples are measured only at the start and at the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from versatune_ds.report.series import RunSeries, number_or_none, of_domain

_NOISE_ERRORS = 2.0
"""Standard errors within which a rise may be chance."""


def measured_losses(series: RunSeries, name: str) -> dict[int, float]:
    """Return {step: validation loss} of a domain, from the metrics or else from the decisions."""
    return _decided(series, name, "mean", is_trained=False) | dict(series.of(f"domain/{name}/loss"))


def loss_errors(series: RunSeries, name: str) -> dict[int, float]:
    """Return {step: standard error of the validation loss} of a domain, where one is recorded."""
    return _decided(series, name, "stderr", is_trained=False) | dict(series.of(f"domain/{name}/loss_stderr"))


def training_losses(series: RunSeries, name: str) -> dict[int, float]:
    """Return {step: mean loss of a domain's training batches since the last update}, under `mixture.signal: train`."""
    return _decided(series, name, "mean", is_trained=True)


def training_errors(series: RunSeries, name: str) -> dict[int, float]:
    """Return {step: standard error} of the losses that `training_losses` returns."""
    return _decided(series, name, "stderr", is_trained=True)


def _decided(series: RunSeries, name: str, key: str, *, is_trained: bool) -> dict[int, float]:
    """Return {step: number} of a domain's loss in the decisions, on training batches or on held-out examples."""
    numbers = {
        decision["decided_at_step"]: number_or_none(of_domain(decision, "losses", name).get(key))
        for decision in series.decisions
        if _is_steered_by_training(decision) == is_trained
    }
    return {step: number for step, number in numbers.items() if number is not None}


def _is_steered_by_training(decision: Mapping[str, Any]) -> bool:
    """Return whether a decision's losses are those of training batches."""
    inputs = decision.get("inputs")
    return isinstance(inputs, Mapping) and inputs.get("signal") == "train"


def rise_beyond_noise(series: RunSeries, name: str) -> float:
    """Return by how many nats a domain's last held-out loss lies above its first; 0 within the noise of the change.

    The noise is twice the standard error of the change: that of the last decision, whose losses are of the same
    examples, or else that of two independent losses. Where no error is recorded every rise counts.
    """
    losses = series.of(f"domain/{name}/loss")
    if len(losses) < 2:
        return 0.0
    rise = losses[-1][1] - losses[0][1]
    return rise if rise > _NOISE_ERRORS * _error_of_change(series, name) and rise > 0 else 0.0


def _error_of_change(series: RunSeries, name: str) -> float:
    """Return the standard error of a domain's change since the start, 0 where it is unknown."""
    for decision in reversed(series.decisions):
        error = number_or_none(of_domain(decision, "signals", name).get("change_from_start_stderr"))
        if error is not None and not _is_steered_by_training(decision):
            return error
    errors, losses = loss_errors(series, name), series.of(f"domain/{name}/loss")
    return math.hypot(errors.get(losses[0][0], 0.0), errors.get(losses[-1][0], 0.0))


def reference_loss(series: RunSeries, name: str) -> float | None:
    """Return a domain's reference loss, from the last decision or else from reference.json."""
    if series.decisions:
        value = number_or_none(of_domain(series.decisions[-1], "signals", name).get("reference_loss"))
        if value is not None:
            return value
    losses = series.reference.get("losses")
    return number_or_none(losses.get(name)) if isinstance(losses, Mapping) else None
