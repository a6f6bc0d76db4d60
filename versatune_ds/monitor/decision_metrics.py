"""Turn a decision into flat metrics, for sinks that know numbers only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def decision_metrics(decision: Mapping[str, Any]) -> dict[str, float]:
    """Return a decision's numbers as {`domain/NAME/...`: value}; unknown ones are left out.

    `excess_loss` is the validation loss minus the reference loss, not clipped.
    """
    values: dict[str, float | None] = {}
    for name, weight in decision["weights_after"].items():
        signals, loss = decision["signals"][name], decision["losses"][name]
        values |= {f"domain/{name}/{key}": value for key, value in signals.items()}
        values[f"domain/{name}/weight_decided"] = weight
        values[f"domain/{name}/loss_stderr"] = loss["stderr"]
        if loss["mean"] is not None and signals.get("reference_loss") is not None:
            values[f"domain/{name}/excess_loss"] = loss["mean"] - signals["reference_loss"]
    return {name: value for name, value in values.items() if value is not None}
