"""Show a plan as text: the transfer table, the plan beside other mixtures, the front, the reasons.

Shape legend: **K** domains.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from versatune_ds.mixture.planning.goal import Goal
from versatune_ds.mixture.planning.limits import Limits
from versatune_ds.mixture.planning.plan_file import Plan
from versatune_ds.mixture.planning.predictor import Planner, Predicted
from versatune_ds.mixture.planning.search import Found
from versatune_ds.mixture.planning.transfer_table import TransferTable
from versatune_ds.planning.plan_gain import gain_note
from versatune_ds.reference.transfer_file import transfer_text
from versatune_ds.text_table import text_table

_NOTHING = 5e-5
"""Change of a loss that is shown as none: half of the last digit."""
_MOST_NAMED = 3
_NEAR = 1e-3
_NUM_FRONT_LINES = 5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shown:
    """What the text of a plan is made from."""

    plan: Plan
    table: TransferTable
    found: Found
    goal: Goal
    limits: Limits
    planner: Planner


def plan_text(shown: Shown) -> str:
    """Return everything that `versatune plan` prints of a plan, without the paths."""
    plan, planner = shown.plan, shown.planner
    target = f" {plan.target}" if plan.target else ""
    head = f"plan for {plan.purpose}{target}, {plan.budget_steps:,} steps\nplanner {planner.name}: {planner.explain}"
    parts = [transfer_text(shown.table), f"{head}\n{losses_text(shown)}", *bounds_notes(shown)]
    parts += [*gain_note(shown.found, shown.goal), *course_note(planner)]
    return "\n\n".join([*parts, no_front_text(plan) if plan.target else front_text(plan.front), why_text(shown)])


def no_front_text(plan: Plan) -> str:
    """Return why no front is shown of a plan for a target."""
    return (
        f"No front is shown: it weighs the mean loss against the worst domain, and this plan is for {plan.target}. "
        "plan.json has it."
    )


def course_note(planner: Planner) -> Iterator[str]:
    """Yield that a planner predicts the end of a run alone, if it does."""
    if not planner.predicts_earlier:
        yield (
            f"The planner {planner.name} predicts the end of a run alone, so the plan has no track: steer keeps its "
            "bounds by the end."
        )


def losses_text(shown: Shown) -> str:
    """Return the plan's weights and predicted losses by domain, beside those of uniform and the prior."""
    found, goal, names = shown.found, shown.goal, shown.table.domain_set
    others = {label: found.named[label] for label in ("uniform", "prior") if label in found.named}
    header = ["\ndomain", "\nshare", "base\nloss", "predicted\nloss", "\n+-", "\nchange", "\nbound"]
    header += [f"{label}\n{column}" for label in others for column in ("share", "change")]
    predicted_of = {label: found.mixtures.predicted_at(np.array([i])) for label, i in others.items()}
    rows = []
    for k, name in enumerate(names):
        cells = [name, f"{found.weights_K[k]:.3f}", *_loss_cells(found.predicted, goal, k), _bound_cell(goal, k)]
        for label, i in others.items():
            change = goal.changes(predicted_of[label])[0, k]
            cells += [f"{found.mixtures.weights_NK[i, k]:.3f}", _percent(change)]
        rows.append(tuple(cells))
    footer = ["mean", "", *_mean_cells(found.predicted, goal), ""]
    for predicted in predicted_of.values():
        footer += ["", _percent(_mean(predicted.losses_NK) / _mean(goal.base_losses_K) - 1)]
    return text_table(tuple(header), rows, footer=tuple(footer))


def _loss_cells(predicted: Predicted, goal: Goal, k: int) -> tuple[str, ...]:
    if np.isnan(goal.base_losses_K[k]):
        return ("-",) * 4
    loss, stderr, base = predicted.losses_NK[0, k], predicted.stderrs_NK[0, k], goal.base_losses_K[k]
    return f"{base:.4f}", f"{loss:.4f}", f"{stderr:.4f}", _percent(loss / base - 1)


def _mean_cells(predicted: Predicted, goal: Goal) -> tuple[str, ...]:
    base, loss = _mean(goal.base_losses_K), _mean(predicted.losses_NK)
    return f"{base:.4f}", f"{loss:.4f}", "", _percent(loss / base - 1)


def _mean(losses: np.ndarray) -> float:
    return float(np.nanmean(losses))


def _percent(change: float) -> str:
    return "-" if np.isnan(change) else f"{100 * change:+.1f} %"


def _bound_cell(goal: Goal, k: int) -> str:
    return f"{100 * goal.bounds_K[k]:+.1f} %" if np.isfinite(goal.bounds_K[k]) else ""


def bounds_notes(shown: Shown) -> Iterator[str]:
    """Yield which bounds no mixture meets, or which ones hold the plan back."""
    found, goal, names = shown.found, shown.goal, shown.table.domain_set
    if found.worst_id is not None:
        name, k = names.names[found.worst_id], found.worst_id
        change, error = goal.changes(found.predicted)[0, k], found.predicted.stderrs_NK[0, k] / goal.base_losses_K[k]
        yield (
            f"No mixture meets the bounds. This one breaks them least: {name} would change by {_percent(change)} +- "
            f"{100 * error:.1f} %, and its bound is {_bound_cell(goal, k)}: it lies {100 * found.worst_excess:.1f} % "
            f"beyond. Allow more with --bound {name}=NUMBER."
        )
        return
    binding = [name for k, name in enumerate(names) if goal.excess(found.predicted)[0, k] > -_NEAR]
    if binding:
        yield (
            f"At their bound: {', '.join(binding)}. For a margin of one standard error, lower a bound by the column +- "
            "divided by the base loss."
        )


def front_text(points: Sequence[Mapping[str, Any]]) -> str:
    """Return the labelled points and a few of the others: mean loss against the worst domain."""
    unlabelled = [i for i, point in enumerate(points) if point["label"] is None]
    wanted = np.linspace(0, len(unlabelled) - 1, min(_NUM_FRONT_LINES, len(unlabelled))).round().astype(int)
    shown = {unlabelled[i] for i in wanted} | {i for i, point in enumerate(points) if point["label"] is not None}
    rows = []
    for i in sorted(shown):
        point = points[i]
        worst = (f"{100 * point['worst']:+.1f} %", point["worst_domain"])
        shares = (f"{share:.3f}" for share in point["weights"].values())
        rows.append((point["label"] or "", *worst, f"{point['mean']:.4f}", *shares))
    title = "mean loss against the domain that rises most, of all mixtures predicted"
    header = ("mixture", "worst", "domain", "mean", *(points[0]["weights"] if points else ()))
    return f"{title}\n{text_table(header, rows)}"


def why_text(shown: Shown) -> str:
    """Return one sentence a domain: its share, and what one percentage point more of it would do."""
    names = shown.table.domain_set
    uniform = 1.0 / len(names)
    lines = [
        f"{name} gets {shown.found.weights_K[k]:.3f}{_limit_note(shown, k)}: {_effects(shown.plan, name)}."
        for k, name in enumerate(names)
    ]
    return "\n".join([f"why, against a uniform share of {uniform:.3f}:", *lines])


def _limit_note(shown: Shown, k: int) -> str:
    """Return at which limit a weight lies, if at one."""
    weight, lower, upper = shown.found.weights_K[k], shown.limits.lower_K[k], shown.limits.upper_K[k]
    if upper - lower < 1e-9:
        return " as given, for no run was on it alone"
    if weight - lower < _NEAR:
        return ", its floor"
    return ", its cap" if upper - weight < _NEAR else ""


def _effects(plan: Plan, name: str) -> str:
    """Describe what one percentage point more of a domain does to those it helps and hurts most, and to the mean."""
    effects = {other: value for other, value in plan.effects.get(name, {}).items() if abs(value) >= _NOTHING}
    falls = sorted((other for other in effects if effects[other] < 0), key=lambda other: effects[other])[:_MOST_NAMED]
    rises = sorted((other for other in effects if effects[other] > 0), key=lambda other: -effects[other])[:_MOST_NAMED]
    parts = [
        f"{verb} " + ", ".join(f"{other} by {100 * abs(effects[other]):.2f} %" for other in others)
        for verb, others in (("lowers", falls), ("raises", rises))
        if others
    ]
    if not parts:
        return "one percentage point more of it changes no loss"
    bases = {other: plan.predicted[other]["base"] for other in plan.effects[name]}
    mean = sum(plan.effects[name][other] * base for other, base in bases.items()) / sum(bases.values())
    return f"one percentage point more of it {' and '.join(parts)}; the mean changes by {100 * mean:+.2f} %"
