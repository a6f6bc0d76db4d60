"""Compare the plan that a run started from with what came of it: predicted and measured losses by domain.

A plan predicts the last loss of a run that keeps its weights. A policy that moves them makes another run, so the share
that each domain really had stands beside the planned one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from versatune_ds.mixture.planning.plan_file import Plan, is_plan
from versatune_ds.report.change_errors import NOISE_ERRORS, error_of_change
from versatune_ds.report.scales import UNKNOWN, format_value
from versatune_ds.report.series import RunSeries, held_out_losses
from versatune_ds.run_folder.names import PLAN_FILE

PLAN_COLUMNS = (
    "domain", "planned share", "realised share", "loss before", "predicted loss", "error of it", "measured loss",
    "error of its change", "measured - predicted", "predicted change", "measured change",
)  # fmt: skip


def plan_of(series: RunSeries) -> Plan | None:
    """Return the plan in a run's folder; None where there is none, or it cannot be read."""
    if not is_plan(series.plan):
        return None
    try:
        return Plan.from_dict(series.plan, place=str(series.run_dir / PLAN_FILE))
    except ValueError:
        return None


def plan_rows(series: RunSeries, plan: Plan) -> list[list[str]]:
    """Return one row of texts a domain, in the order of PLAN_COLUMNS, and one of the means."""
    rows = [_row(series, plan, name) for name in plan.weights]
    known = [pair for name in plan.predicted if (pair := _predicted_and_measured(series, plan, name)) is not None]
    if len(known) < 2:
        return rows
    predicted, measured = (sum(column) / len(known) for column in zip(*known, strict=True))
    mean = {1: "", 4: format_value(predicted, "loss"), 6: format_value(measured, "loss")}
    mean[8] = f"{measured - predicted:+.4f}"
    return [*rows, [f"mean of {len(known)}", *(mean.get(i, "") for i in range(1, len(PLAN_COLUMNS)))]]


def _row(series: RunSeries, plan: Plan, name: str) -> list[str]:
    losses, predicted = held_out_losses(series, name), plan.predicted.get(name, {})
    steps = sorted(losses.values)
    before = losses.values[steps[0]] if steps else None
    after = losses.values[steps[-1]] if len(steps) > 1 else None
    error = error_of_change(series, name) if len(steps) > 1 else None
    expected = predicted.get("loss")
    return [
        name,
        format_value(plan.weights[name], "weight"),
        format_value(series.last(f"domain/{name}/realised_share"), "weight"),
        format_value(before, "loss"),
        format_value(expected, "loss"),
        format_value(predicted.get("stderr"), "loss"),
        format_value(after, "loss"),
        format_value(error, "loss"),
        UNKNOWN if after is None or expected is None else f"{after - expected:+.4f}",
        _percent(expected, predicted.get("base")),
        _percent(after, before),
    ]


def _percent(loss: float | None, base: float | None) -> str:
    return UNKNOWN if loss is None or not base else f"{loss / base - 1:+.1%}"


def _predicted_and_measured(series: RunSeries, plan: Plan, name: str) -> tuple[float, float] | None:
    """Return a domain's predicted and last measured loss; None before it was measured after step 0."""
    losses, predicted = held_out_losses(series, name), plan.predicted.get(name)
    if predicted is None or len(losses.values) < 2:
        return None
    return predicted["loss"], losses.values[max(losses.values)]


def plan_sentences(series: RunSeries, plan: Plan) -> list[str]:
    """Describe how well the plan predicted, and where this run is not the one that was planned."""
    target = f" {plan.target}" if plan.target else ""
    texts = [f"Planned by {plan.planner} for {plan.purpose}{target}: a run of {plan.budget_steps:,} steps."]
    pairs = {name: pair for name in plan.predicted if (pair := _predicted_and_measured(series, plan, name))}
    if series.last_step != plan.budget_steps:
        texts[0] += f" This run has {series.last_step:,} so far, so the losses are not those of the same step."
    if not pairs:
        return [*texts, "No loss has been measured since training began."]
    far = [name for name, (predicted, measured) in pairs.items() if _is_far(series, plan, name, measured - predicted)]
    within = f"{len(pairs) - len(far)} of {len(pairs)} domains ended within two standard errors of their predicted loss"
    texts.append(f"{within}; not so: {', '.join(far)}." if far else f"{within}.")
    texts[-1] += " Errors of measured losses are those of their change since the start, paired by held-out example."
    beyond = [text for name, bound in plan.bounds.items() if (text := _beyond_bound(series, name, bound)) is not None]
    if beyond:
        texts.append(f"Above the bound that was planned for: {', '.join(beyond)}.")
    elif plan.bounds:
        texts.append("Every domain ended within the bound that was planned for.")
    return texts


def track_table(series: RunSeries, plan: Plan) -> tuple[tuple[str, ...], list[list[str]]] | None:
    """Return header and rows of predicted and measured losses on the way; None without a track or the run's length.

    A measured loss lies on the straight line between the measurements around the point of the track.
    """
    points = [point for point in plan.track or () if point["fraction"] > 0]
    if not points or not series.num_steps:
        return None
    steps = [point["fraction"] * series.num_steps for point in points]
    columns = tuple(f"step {step:,.0f} {what}" for step in steps for what in ("predicted", "measured"))
    rows = []
    for name in plan.predicted:
        cells = [
            format_value(value, "loss")
            for step, point in zip(steps, points, strict=True)
            for value in (point["losses"].get(name), _measured_at(series, name, step))
        ]
        rows.append([name, *cells])
    return ("domain", *columns), rows


def _measured_at(series: RunSeries, name: str, step: float) -> float | None:
    """Return a domain's held-out loss at a step; None beyond its last measurement."""
    losses = held_out_losses(series, name).values
    if not losses or step > max(losses):
        return None
    steps = sorted(losses)
    return float(np.interp(step, steps, [losses[each] for each in steps]))


def _is_far(series: RunSeries, plan: Plan, name: str, difference: float) -> bool:
    error = math.hypot(plan.predicted[name]["stderr"], error_of_change(series, name) or 0.0)
    return abs(difference) > NOISE_ERRORS * error


def _beyond_bound(series: RunSeries, name: str, bound: float) -> str | None:
    """Return by how much a domain lies above its bound, and whether that may be chance; None where it does not."""
    change, start = _measured_change(series, name), held_out_losses(series, name).values
    if change is None or change <= bound:
        return None
    error = (error_of_change(series, name) or 0.0) / start[min(start)]
    may_be_chance = ", within two standard errors of it" if change - bound <= NOISE_ERRORS * error else ""
    return f"{name} ({change:+.1%}, bound {bound:+.1%}{may_be_chance})"


def _measured_change(series: RunSeries, name: str) -> float | None:
    """Return the change of a domain's loss since step 0 as a share of it; None where it is not known."""
    losses = held_out_losses(series, name).values
    return losses[max(losses)] / losses[min(losses)] - 1 if len(losses) > 1 and losses[min(losses)] > 0 else None


def planned_view(series: RunSeries) -> Mapping[str, Any] | None:
    """Return what the page shows of a run's plan; None for a run without one."""
    plan = plan_of(series)
    if plan is None:
        return None
    track = track_table(series, plan)
    return {
        "columns": PLAN_COLUMNS,
        "rows": plan_rows(series, plan),
        "sentences": plan_sentences(series, plan),
        "track": None if track is None else {"columns": track[0], "rows": track[1]},
    }
