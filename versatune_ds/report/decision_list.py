"""List a run's decisions for the report page: the losses and signals of each, what it changed and why.

The numbers are those of decisions.jsonl, only rounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from versatune_ds.mixture.policies.acted import kinds_of, read_recorded
from versatune_ds.report.scales import evenly, format_value
from versatune_ds.report.series import RunSeries, loss_above_reference, number_of, number_or_none
from versatune_ds.report.story import VISIBLE_MOVE, changes_of_weights

COLUMNS = (
    "domain", "loss", "± error", "reference", "above reference", "potential", "forgot: previous", "best", "start",
    "weight before", "after", "change",
)  # fmt: skip
_MAX_ROWS = 6000
"""Rows of all decisions' tables together."""
_MAX_DECISIONS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRow:
    """One decision as text."""

    update: int
    step: int
    """Optimizer step after which it was made."""
    effective_step: int
    reason: str
    acted: list[str]
    kinds: list[str]
    """Names of the safeguards that acted."""
    moved: list[int]
    """Numbers of the domains whose weight moved visibly."""
    inputs: list[str]
    """Inputs besides losses."""
    digest: str
    rows: list[list[str]]
    """One row a domain, in the order of COLUMNS."""


def decision_rows(series: RunSeries, *, slots: Mapping[str, int]) -> list[DecisionRow]:
    """Return the decisions to list: all, or where they are too many a choice, half of it of those with safeguards."""
    limit = min(max(_MAX_ROWS // max(len(series.domain_names), 1), 20), _MAX_DECISIONS)
    decisions = series.decisions
    kept = set(range(len(decisions)))
    if len(decisions) > limit:
        with_safeguards = [i for i, decision in enumerate(decisions) if decision.get("acted")]
        kept = {with_safeguards[i] for i in evenly(len(with_safeguards), limit // 2)} if with_safeguards else set()
        kept |= set(evenly(len(decisions), limit - len(kept)))
    return [_row(decisions[index], series.domain_names, slots) for index in sorted(kept)]


def _row(decision: Mapping[str, Any], names: tuple[str, ...], slots: Mapping[str, int]) -> DecisionRow:
    changes = changes_of_weights(decision["weights_before"], decision["weights_after"])
    inputs = decision.get("inputs")
    acted = decision.get("acted")
    return DecisionRow(
        update=decision.get("update", 0),
        step=decision["decided_at_step"],
        effective_step=decision.get("effective_step", decision["decided_at_step"]),
        reason=str(decision.get("reason", "")),
        acted=[str(text) for text in acted] if isinstance(acted, list) else [],
        kinds=kinds_of(read_recorded(acted)),
        moved=[slots[name] for name, change in changes.items() if name in slots and abs(change) >= VISIBLE_MOVE],
        inputs=[f"{key}: {value}" for key, value in inputs.items()] if isinstance(inputs, Mapping) else [],
        digest=str(decision.get("digest", "")),
        rows=[_domain_cells(decision, name, changes.get(name)) for name in names],
    )


def _domain_cells(decision: Mapping[str, Any], name: str, change: float | None) -> list[str]:
    """Return a domain's numbers in a decision, in the order of COLUMNS."""
    shown = (
        ("losses", "mean", "loss"),
        ("losses", "stderr", "loss"),
        ("signals", "reference_loss", "loss"),
        ("signals", "learnable_potential", "weight"),
        ("signals", "forgetting_degree", "share"),
        ("signals", "forgetting_from_best", "share"),
        ("signals", "forgetting_from_start", "share"),
    )
    cells = [format_value(number_of(decision, part, name, key), kind) for part, key, kind in shown]
    cells.insert(3, format_value(loss_above_reference(decision, name), "loss"))
    weights = [number_or_none(decision[key].get(name)) for key in ("weights_before", "weights_after")]
    return [name, *cells, *(format_value(weight, "weight") for weight in weights), change_text(change)]


def change_text(change: float | None) -> str:
    """Return a weight's change with a word for its direction, so that a sign or a colour is not all there is."""
    if change is None:
        return "unknown"
    if abs(change) < VISIBLE_MOVE:
        return "held"
    return f"{'▲ up' if change > 0 else '▼ down'} {abs(change):.4f}"
