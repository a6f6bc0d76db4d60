"""Write what a target's gain costs the other domains, in the form of the paper's Table 5, and at equal gain.

Two policies that give the target different gains cannot be compared on what they cost the others. So where a policy was
run with two shares of the target or more, its cost is interpolated to the gain that the baseline gives, run by run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from versatune_ds.comparison.cells import Cell
from versatune_ds.comparison.headroom import bootstrap_ratio
from versatune_ds.comparison.outcome import loss_fall
from versatune_ds.comparison.results_page.intervals import Mean, difference, mean_with_interval
from versatune_ds.comparison.results_page.results import Results
from versatune_ds.comparison.results_page.table import as_table
from versatune_ds.export.model_card import escaped

SHARE_KEY = "mixture.target_share"
"""Runs that differ in this key alone are one policy at several shares of the target."""
_REACH = 0.25
"""How far beyond two shares their line is followed, as a share of the gain between them."""
_PAPER = 38.77
"""Percent less lost by the others than under uniform fill, as the paper states it (arXiv 2411.11266)."""

_HOW_TO_READ = """Relative falls of the loss since the base model in percentage points; negative where domains degraded.
Sum: over all domains but the target. Losses alone: the sum over those that degraded. Ratio: the sum by point of the
target's gain. Student's 95 % intervals {units}."""

_HOW_TO_READ_EQUAL = """The others' sum and losses alone at the target's gain of `{baseline}`, on the straight line
between the runs of the two nearest shares with the same seed{and_target}; beyond them, for up to a quarter of their
distance (such pairs are counted in brackets), further off not at all. Behind the value the paired difference from
`{baseline}`, in points. Less lost: by how much less the others lose than under `{baseline}`, with a 95 % bootstrap
interval over the pairs, too narrow for so few; "-" where they lose nothing there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one run gained in the target, and what it did to the other domains, as relative falls of the loss."""

    gain: float
    total: float
    """Sum over the other domains; negative: they degraded."""
    losses: float
    """Sum over those of them that degraded; never positive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AtEqualGain:
    """A policy at the gains that the baseline gives the target."""

    num_beyond: int
    """Pairs in which the gain is beyond those of the policy's own runs."""
    num_runs: int
    """Pairs there could be."""
    total: Mapping[Cell, float]
    """By the baseline's run: sum of the others."""
    losses: Mapping[Cell, float]


def cost_of(results: Results, cell: Cell) -> Cost:
    """Return what a run gained and cost.

    Worked example: target 2.0 -> 1.5, others 1.0 -> 1.2 and 1.0 -> 0.9: gain .25, sum -.1, losses alone -.2.
    """
    after = results.domains[cell]
    falls = {name: loss_fall(after, results.base, name) for name in results.domain_names()}
    others = [fall for name, fall in falls.items() if name != cell.target]
    return Cost(gain=falls[cell.target or ""], total=sum(others), losses=sum(min(fall, 0.0) for fall in others))


def expansion_section(results: Results) -> list[str]:
    """Return the section's paragraphs; none in a comparison without targets."""
    if not results.plan.targets:
        return []
    costs = {cell: cost_of(results, cell) for cell in results.domains}
    units = f"over the {len(results.plan.targets)} targets" if len(results.plan.targets) > 1 else "over the seeds"
    rows = [_row(results, costs, label) for label in results.plan.runs if results.cells_of(label)]
    headings = ["policy", "target's gain, points", "others: sum, points", "others: losses alone, points", "ratio"]
    return [
        "## What the target's gain costs the others",
        "",
        as_table(headings, rows),
        "",
        _HOW_TO_READ.format(units=units),
        "",
        *_equal_gain_paragraphs(results, costs),
    ]


def _row(results: Results, costs: Mapping[Cell, Cost], label: str) -> list[str]:
    gain, total, losses = (
        results.values_of(label, lambda cell, key=key: getattr(costs[cell], key)) for key in ("gain", "total", "losses")
    )
    ratio = sum(total) / sum(gain) if sum(gain) > 0 else math.nan
    return [escaped(label), *map(_points, (gain, total, losses)), "-" if math.isnan(ratio) else f"{ratio:+.2f}"]


def families(runs: Mapping[str, Mapping[str, object]]) -> list[list[str]]:
    """Return the labels of the policies that were run with several shares of the target, in the order of the file."""
    by_rest: dict[str, list[str]] = {}
    for label, values in runs.items():
        rest = {key: value for key, value in values.items() if key != SHARE_KEY}
        by_rest.setdefault(json.dumps(rest, sort_keys=True, default=str), []).append(label)
    return [labels for labels in by_rest.values() if len({str(runs[label].get(SHARE_KEY)) for label in labels}) > 1]


def interpolate(points: Sequence[tuple[float, float]], at: float) -> tuple[float, bool] | None:
    """Return the value at a gain on the line through the two nearest points, and whether it is beyond all points.

    None for fewer than two gains, or further beyond them than a quarter of the distance of the last two.

    Worked example: (.2, -.1) and (.4, -.5): -.3 at .3, -.6 at .45 (beyond), None at .5.

    Args:
        points: Gain and value.
        at: The gain.
    """
    known = sorted(dict(points).items())
    segments = list(pairwise(known))
    if not segments:
        return None
    inside = [segment for segment in segments if segment[0][0] <= at <= segment[1][0]]
    (x0, y0), (x1, y1) = inside[0] if inside else segments[0] if at < known[0][0] else segments[-1]
    if not inside and max(x0 - at, at - x1) > _REACH * (x1 - x0) + 1e-12:
        return None
    return y0 + (at - x0) / (x1 - x0) * (y1 - y0), not inside


def at_equal_gain(results: Results, costs: Mapping[Cell, Cost], labels: Sequence[str]) -> AtEqualGain:
    """Return a policy's cost at the gain of every run of the baseline, from its own runs with that seed and target."""
    total, losses, num_beyond = {}, {}, 0
    baseline = results.cells_of(results.plan.baseline)
    for cell in baseline:
        mine = [c for c in costs if c.label in labels and (c.seed, c.target) == (cell.seed, cell.target)]
        found = [
            interpolate([(costs[c].gain, getattr(costs[c], key)) for c in mine], costs[cell].gain)
            for key in ("total", "losses")
        ]
        if None in found:
            continue
        (total[cell], is_beyond), (at_gain, _) = found
        losses[cell] = min(at_gain, 0.0)
        num_beyond += is_beyond
    return AtEqualGain(num_beyond=num_beyond, num_runs=len(baseline), total=total, losses=losses)


def _equal_gain_paragraphs(results: Results, costs: Mapping[Cell, Cost]) -> list[str]:
    """Return the table at equal gain; none where no policy but the baseline's was run with several shares."""
    baseline = results.plan.baseline
    rows = []
    for labels in families(results.plan.runs):
        equal = at_equal_gain(results, costs, labels)
        if baseline not in labels and equal.total:
            rows.append(_equal_gain_row(results, costs, labels, equal))
    if not rows:
        return []
    headings = [
        "policy", "pairs (beyond)", "others: sum, points", "less lost, % of the sum", "others: losses alone, points",
        "less lost, % of the losses alone",
    ]  # fmt: skip
    and_target = " and target" if len(results.plan.targets) > 1 else ""
    return [
        f"### At the target's gain of `{baseline}`",
        "",
        f"The paper states {_PAPER} % less lost than under uniform fill.",
        "",
        as_table(headings, rows),
        "",
        _HOW_TO_READ_EQUAL.format(baseline=baseline, and_target=and_target),
        "",
    ]


def _equal_gain_row(
    results: Results, costs: Mapping[Cell, Cost], labels: Sequence[str], equal: AtEqualGain
) -> list[str]:
    texts = []
    for key, values in (("total", equal.total), ("losses", equal.losses)):
        mine = results.values_of(results.plan.baseline, values.get)
        other = results.values_of(
            results.plan.baseline,
            lambda cell, key=key, values=values: getattr(costs[cell], key) if cell in values else None,
        )
        change = difference(list(zip(mine, other, strict=True)))
        texts += [f"{_points(mine)} ({_text(change)})", less_lost(mine, other)]
    name = " and ".join(map(escaped, labels))
    return [name, f"{len(equal.total)} of {equal.num_runs} ({equal.num_beyond})", *texts]


def less_lost(mine: Sequence[float], baseline: Sequence[float]) -> str:
    """Return how much less the others lose than under the baseline, in percent; "-" where they lose nothing there.

    Worked example: sums -.1 and -.2 where the baseline has -.2 and -.4: 50 % with every resample of the pairs.
    """
    below = -np.asarray(baseline)
    if below.mean() <= 0:
        return "-"
    low, high = bootstrap_ratio(-np.asarray(mine), below)
    interval = "" if math.isnan(low) else f" ({_percent(1 - high):.0f} to {_percent(1 - low):.0f})"
    return f"{_percent(1 - np.mean(mine) / np.mean(baseline)):.1f}{interval}"


def _points(values: Sequence[float]) -> str:
    return _text(mean_with_interval(values))


def _text(mean: Mean) -> str:
    half = "" if math.isnan(mean.half_width) else f" ± {100 * mean.half_width:.1f}"
    return f"{_percent(mean.mean):+.1f}{half}"


def _percent(value: float) -> float:
    """Return a share in percent, rounded so that no zero is written with a minus sign."""
    return round(100 * float(value), 1) + 0.0
