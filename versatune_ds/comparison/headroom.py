"""Measure how much any mixture could gain, and which share of it every policy takes.

The best of many fixed mixtures is chosen by luck too (the winner's curse): its gain on the runs it was chosen by is too
high. So it is chosen on some seeds and measured on others, and every share is of that gain.

Shape legend: **S** seeds that gains are measured on, **P** points of mean loss and worst domain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

from versatune_ds.comparison.cells import Cell
from versatune_ds.comparison.outcome import outcome
from versatune_ds.comparison.results_page.results import Results

MATTERS = 0.01
"""Headroom, as a share of uniform's mean loss, below which mixtures do not matter."""
_NUM_RESAMPLES = 2000
_SEED = 14
_LEAST_RANKED = 3
"""Mixtures from which a rank correlation says anything."""

Judged = Literal["other seeds", "left-out seeds", "same seed"]
"""Seeds that a gain is measured on: those that did not choose; each in turn; or, with one seed, the one that did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The best of several fixed mixtures, and what it gains over uniform in mean loss."""

    label: str
    """The best by its mean over `seeds`."""
    seeds: tuple[int, ...]
    """Seeds it was chosen on: those that every mixture was trained with."""
    chosen_by: float
    """Its mean gain on them in nats per loss token: too high, by its luck."""
    gains: Mapping[int, float]
    """By seed that did not choose it: the gain, in nats per loss token. With left-out seeds each may be of another
    mixture."""
    judged: Judged

    @property
    def gain(self) -> float:
        """Return the mean gain, in nats per loss token."""
        return float(np.mean(list(self.gains.values())))


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A policy's share of the headroom; None where it is not defined, and NaN bounds where an interval is not."""

    gain: float
    """Mean gain over uniform, as a share of uniform's mean loss."""
    share: float | None
    low: float
    high: float
    """95 % bootstrap interval over the seeds."""


def gains_of(results: Results) -> dict[str, dict[int, float]]:
    """Return label and seed to the fall of the mean loss since uniform with the same seed, in nats per loss token."""
    losses = _by_label_and_seed(results, "loss")
    uniform = losses[results.uniform]
    return {
        label: {seed: uniform[seed] - loss for seed, loss in by_seed.items() if seed in uniform}
        for label, by_seed in losses.items()
        if label != results.uniform
    }


def _by_label_and_seed(results: Results, measure: str) -> dict[str, dict[int, float]]:
    values: dict[str, dict[int, float]] = {}
    for cell, domains in results.domains.items():
        value = getattr(outcome(domains, results.base, target=cell.target), measure)
        values.setdefault(cell.label, {})[cell.seed] = value
    return values


def drawn_labels(results: Results) -> list[str]:
    """Return the labels of the mixtures that were drawn."""
    return list(dict.fromkeys(cell.label for cell in results.domains if cell.mixture is not None))


def fixed_labels(results: Results) -> list[str]:
    """Return the labels of all fixed mixtures but uniform: drawn ones, and runs whose policy does not move."""
    known = {cell.label for cell in results.domains}
    fixed = [label for label in results.plan.runs if label in results.fixed and label in known - {results.uniform}]
    return [*drawn_labels(results), *fixed]


def is_measurable(results: Results) -> bool:
    """Return whether there is a seed with uniform and every fixed mixture: not so in a comparison just begun."""
    runs = {(cell.label, cell.seed) for cell in results.domains}
    needed = [results.uniform, *fixed_labels(results)]
    return any({(label, seed) for label in needed} <= runs for seed in results.plan.seeds)


def best_of(gains: Mapping[str, Mapping[int, float]], labels: Sequence[str], *, seeds: Sequence[int]) -> Best:
    """Return the best of several mixtures, with its gain on seeds that did not choose it.

    Worked example: gains on seeds 1 and 2 of a (.3, .1) and b (.2, .3): b is best, chosen by .25. Seed 1 alone chooses
    a, which gains .1 on seed 2; seed 2 alone chooses b, which gains .2 on seed 1: an honest gain of .15.

    Args:
        gains: Label and seed to the gain over uniform.
        labels: Mixtures to choose among.
        seeds: All seeds of the comparison; the mixtures may have fewer.
    """
    shared = tuple(seed for seed in seeds if all(seed in gains[label] for label in labels))
    label = _best(gains, labels, seeds=shared)
    chosen_by = float(np.mean([gains[label][seed] for seed in shared]))
    others = {seed: gains[label][seed] for seed in seeds if seed not in shared and seed in gains[label]}
    judged: Judged
    if others:
        judged, measured = "other seeds", others
    elif len(shared) > 1:
        judged, measured = "left-out seeds", {}
        for seed in shared:
            rest = [other for other in shared if other != seed]
            measured[seed] = gains[_best(gains, labels, seeds=rest)][seed]
    else:
        judged, measured = "same seed", {seed: gains[label][seed] for seed in shared}
    return Best(label=label, seeds=shared, chosen_by=chosen_by, gains=measured, judged=judged)


def _best(gains: Mapping[str, Mapping[int, float]], labels: Sequence[str], *, seeds: Sequence[int]) -> str:
    """Return the label with the largest mean gain; of equal ones the first."""
    return max(labels, key=lambda label: np.mean([gains[label][seed] for seed in seeds]))


def follow_up_cells(results: Results) -> list[Cell]:
    """Return the runs of the best drawn mixture with the seeds that did not choose it, those that do not exist yet."""
    drawn = drawn_labels(results)
    if not drawn:
        return []
    best = best_of(gains_of(results), drawn, seeds=results.plan.seeds)
    mixture = next(cell.mixture for cell in results.domains if cell.label == best.label)
    cells = [Cell(label=best.label, target=None, seed=seed, mixture=mixture) for seed in results.plan.seeds]
    return [cell for cell in cells if cell not in results.domains]


def headroom_of(results: Results, best: Best) -> float:
    """Return the gain of the best mixture as a share of uniform's mean loss on the same seeds."""
    return best.gain / _uniform_loss(results, list(best.gains))


def seeming_headroom_of(results: Results, best: Best) -> float:
    """Return the same on the seeds that chose the mixture: too large, by its luck."""
    return best.chosen_by / _uniform_loss(results, best.seeds)


def _uniform_loss(results: Results, seeds: Sequence[int]) -> float:
    by_seed = _by_label_and_seed(results, "loss")[results.uniform]
    return float(np.mean([by_seed[seed] for seed in seeds]))


def share_of(results: Results, best: Best, label: str) -> Share:
    """Return what a policy gains, and its share of what the best mixture gains, on the same seeds.

    Worked example: 0.02 and 0.04 nats where the best gains 0.04 and 0.08: a half, with every resample of the seeds.
    """
    losses = _by_label_and_seed(results, "loss")
    seeds = [seed for seed in best.gains if seed in losses.get(label, {})]
    if not seeds:
        return Share(gain=math.nan, share=None, low=math.nan, high=math.nan)
    uniform_S, policy_S = (np.array([losses[name][seed] for seed in seeds]) for name in (results.uniform, label))
    best_S, gains_S = np.array([best.gains[seed] for seed in seeds]), uniform_S - policy_S
    share = None if best_S.mean() <= 0 else float(gains_S.mean() / best_S.mean())
    low, high = (math.nan, math.nan) if share is None else bootstrap_ratio(gains_S, best_S)
    return Share(gain=float(gains_S.mean() / uniform_S.mean()), share=share, low=low, high=high)


def bootstrap_ratio(above_S: np.ndarray, below_S: np.ndarray) -> tuple[float, float]:
    """Return a 95 % interval of mean(above) / mean(below), with the pairs drawn again with replacement.

    NaN with fewer than two pairs, or where more than one resample in 40 has no positive mean below: a share of nothing.
    """
    num = len(above_S)
    if num < 2:
        return math.nan, math.nan
    drawn = np.random.default_rng(_SEED).integers(num, size=(_NUM_RESAMPLES, num))
    above, below = above_S[drawn].mean(axis=1), below_S[drawn].mean(axis=1)
    is_positive = below > 0
    if is_positive.mean() < 1 - 0.025:
        return math.nan, math.nan
    low, high = np.quantile(above[is_positive] / below[is_positive], (0.025, 0.975))
    return float(low), float(high)


def points_of(results: Results, labels: Sequence[str], *, seeds: Sequence[int]) -> np.ndarray:
    """Return each label's point [P,2] over some seeds: fall of the mean loss since the base model, and worst domain.

    Both are shares, and larger is better; NaN where a policy has none of these seeds.
    """
    losses, worst = (_by_label_and_seed(results, measure) for measure in ("loss", "worst"))
    base = float(np.mean([results.base[name]["loss"] for name in results.domain_names()]))
    return np.array(
        [(1 - _mean(losses.get(label, {}), seeds) / base, _mean(worst.get(label, {}), seeds)) for label in labels]
    )


def _mean(by_seed: Mapping[int, float], seeds: Sequence[int]) -> float:
    """Return the mean over those of some seeds that there are, NaN without any."""
    values = [by_seed[seed] for seed in seeds if seed in by_seed]
    return float(np.mean(values)) if values else math.nan


def distance_to_front(point: np.ndarray, others_P: np.ndarray) -> float:
    """Return how much a point would have to rise on both axes so that no other point is better on both.

    Negative: it lies beyond the front of the others, by that much. Source: the additive epsilon indicator (Zitzler and
    others 2003, "Performance assessment of multiobjective optimizers").

    Worked example: (.05, -.10) against (.06, -.05) and (.10, -.20): .01, since the first is better on both by .01 and
    .05, the second not on both.

    Args:
        point: Fall of the mean loss, and worst domain.
        others_P: [P,2], the same of the mixtures that make the front.
    """
    return float(np.max(np.min(others_P - point, axis=1)))


def front_distances(results: Results, *, seeds: Sequence[int]) -> dict[str, float]:
    """Return every policy's distance to the front of the other fixed mixtures, uniform among them."""
    candidates = [*fixed_labels(results), results.uniform]
    points = dict(zip(candidates, points_of(results, candidates, seeds=seeds), strict=True))
    distances = {}
    for label in results.plan.runs:
        others = [point for name, point in points.items() if name != label and not np.isnan(point).any()]
        distances[label] = distance_to_front(points_of(results, [label], seeds=seeds)[0], np.array(others))
    return distances


def rank_correlation(results: Results, predicted: Mapping[str, float], *, seeds: Sequence[int]) -> float | None:
    """Return Spearman's correlation of predicted and measured mean loss over the drawn mixtures; None if undefined."""
    losses = _by_label_and_seed(results, "loss")
    labels = [label for label in drawn_labels(results) if label in predicted]
    measured = [float(np.mean([losses[label][seed] for seed in seeds])) for label in labels]
    expected = [predicted[label] for label in labels]
    if len(labels) < _LEAST_RANKED or np.ptp(measured) == 0 or np.ptp(expected) == 0:
        return None
    return float(stats.spearmanr(expected, measured).statistic)
