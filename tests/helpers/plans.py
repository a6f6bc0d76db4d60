"""A small plan.json, with numbers that can be checked by hand."""

from __future__ import annotations

from typing import Any


def plan_content(names: tuple[str, ...] = ("law", "code", "general"), **entries: Any) -> dict[str, Any]:
    """Return the content of a plan of 40 steps: shares 1/2, 1/4, ..., the last one twice; losses fall by an eighth."""
    shares = [0.5 ** (k + 1) for k in range(len(names) - 1)]
    weights = dict(zip(names, [*shares, 1 - sum(shares)], strict=True))
    predicted = {"loss": 3.5, "stderr": 0.125, "base": 4.0, "change": -0.5}
    return {
        "weights": weights,
        "weight_unit": "tokens",
        "predicted": {name: dict(predicted) for name in names},
        "planner": "transfer",
        "for": "balanced",
        "bounds": dict.fromkeys(names, 0.0),
        "budget_steps": 40,
        "front": [],
        "calibration": {},
        "provenance": {"date": "2026-11-28"},
        **entries,
    }
