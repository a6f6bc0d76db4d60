"""Write which effects are there at all: the sign of each, the learning rate's beside the mixture's, what is enough."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from versatune_ds.comparison.headroom import (
    MATTERS,
    best_of,
    drawn_labels,
    fixed_labels,
    gains_of,
    headroom_of,
    is_measurable,
)
from versatune_ds.comparison.outcome import AS_PERCENT
from versatune_ds.comparison.results_page.intervals import Mean, difference
from versatune_ds.comparison.results_page.results import Results
from versatune_ds.comparison.results_page.table import HEADINGS, UNITS, as_table, heading, is_better, p_values
from versatune_ds.export.model_card import escaped
from versatune_ds.mixture.policies.fixed import PROPORTIONAL, UNIFORM

RATE_KEY = "train.learning_rate"
_LEVEL = 0.05

_HOW_TO_READ = """Better or worse than `{baseline}`: the paired difference differs from 0 at 5 % after Holm's correction
over the policies; otherwise not beyond noise. Behind it the difference with Student's 95 % interval, which is not
corrected."""


def effects_section(results: Results) -> list[str]:
    """Return the section's paragraphs; none where there is one policy alone."""
    others = [label for label in results.plan.runs if label != results.plan.baseline]
    if not others:
        return []
    measures = [m for m in ("target", "others", "loss", "bits", "choices", "worst") if m in results.measures()]
    p_by_measure = {measure: p_values(results, measure) for measure in measures}
    rows = [
        [escaped(label), *(sign_text(results, label, measure, p=p_by_measure[measure][label]) for measure in measures)]
        for label in others
    ]
    sentences = [*rate_sentences(results), *enough_sentences(results)]
    return [
        f"## Better, worse, or not beyond noise: each policy against `{results.plan.baseline}`",
        "",
        *(f"- {sentence}" for sentence in sentences),
        *([""] if sentences else []),
        as_table(["policy", *map(_heading, measures)], rows),
        "",
        _HOW_TO_READ.format(baseline=results.plan.baseline),
        "",
    ]


def _heading(measure: str) -> str:
    return f"{HEADINGS[measure]}, points" if measure in AS_PERCENT else heading(measure)


def sign_text(results: Results, label: str, measure: str, *, p: float) -> str:
    """Return better, worse or not beyond noise, with the paired difference."""
    change = difference(results.pairs(label, measure))
    if math.isnan(change.mean):
        return "-"
    if math.isnan(p):
        return f"one pair alone: {_change(change, measure)}"
    if p >= _LEVEL:
        return f"not beyond noise: {_change(change, measure)}"
    return f"{'better' if is_better(change.mean, 0.0, measure) else 'worse'}: {_change(change, measure)}"


def _change(change: Mean, measure: str) -> str:
    scale, digits = (100, 2) if measure in AS_PERCENT else (1, 4)
    half = "" if math.isnan(change.half_width) else f" ± {scale * change.half_width:.{digits}f}"
    return f"{scale * change.mean:+.{digits}f}{half}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Largest:
    """The largest of several differences between two policies."""

    size: float
    labels: tuple[str, str]


def rate_sentences(results: Results) -> list[str]:
    """Return what the learning rate alone does beside what the mixture alone does; none where no run sets the rate."""
    runs = results.plan.runs
    rates = {label: _rate(results, label) for label in runs}
    rest = {label: _text({k: v for k, v in values.items() if k != RATE_KEY}) for label, values in runs.items()}
    pairs = list(combinations(runs, 2))
    of_rate = [(a, b) for a, b in pairs if rest[a] == rest[b] and rates[a] != rates[b]]
    of_mixture = [(a, b) for a, b in pairs if rest[a] != rest[b] and rates[a] == rates[b]]
    sentences = []
    for measure in ("target", "others") if results.plan.targets else ("loss", "worst"):
        rate, mixture = (_largest(results, chosen, measure) for chosen in (of_rate, of_mixture))
        if rate and mixture:
            sentences.append(
                f"{HEADINGS[measure].capitalize()}: the learning rate alone moves it by up to "
                f"{_size(rate, measure)}, the mixture alone, at one learning rate, by up to {_size(mixture, measure)}"
                f"{_times(rate, mixture)}."
            )
    return sentences


def _rate(results: Results, label: str) -> str:
    """Return a run's learning rate as it is written, empty where it is the shared recipe's."""
    return _text(results.plan.runs[label].get(RATE_KEY, results.plan.set.get(RATE_KEY)))


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _largest(results: Results, pairs: list[tuple[str, str]], measure: str) -> _Largest | None:
    """Return the largest paired difference between the two policies of a pair, None where none was measured."""
    found = [
        _Largest(size=abs(difference(results.pairs(a, measure, baseline=b)).mean), labels=(a, b)) for a, b in pairs
    ]
    return max((item for item in found if not math.isnan(item.size)), key=lambda item: item.size, default=None)


def _size(largest: _Largest, measure: str) -> str:
    value = f"{100 * largest.size:.2f} points" if measure in AS_PERCENT else f"{largest.size:.4f} {UNITS[measure]}"
    return f"{value} (`{largest.labels[0]}` and `{largest.labels[1]}`)"


def _times(rate: _Largest, mixture: _Largest) -> str:
    """Return how many times as large the larger one is, nothing where the smaller one is 0."""
    if min(rate.size, mixture.size) == 0:
        return ""
    if rate.size >= mixture.size:
        return f": {rate.size / mixture.size:.1f} times as much for the learning rate"
    return f": {mixture.size / rate.size:.1f} times as much for the mixture"


def enough_sentences(results: Results) -> list[str]:
    """Return where equal or proportional shares are enough: no policy has a lower mean loss beyond noise.

    The judgement is on the mean over domains; with a target it would be of the wrong thing, so there is none.
    """
    if results.plan.targets:
        return []
    sentences = []
    for label, values in results.plan.runs.items():
        policy = values.get("mixture.policy")
        if policy in (UNIFORM.name, PROPORTIONAL.name) and _is_enough(results, label):
            sentences.append(
                f"`{label}` is enough here for the mean loss: no policy{_at_its_rate(results)} is below it beyond "
                f"noise{_blind(results, label)}."
            )
    if drawn_labels(results) and is_measurable(results):
        best = best_of(gains_of(results), fixed_labels(results), seeds=results.plan.seeds)
        if headroom_of(results, best) < MATTERS:
            sentences.append(f"No fixed mixture gains {100 * MATTERS:.0f} % over `{results.uniform}`.")
    return sentences


def _is_enough(results: Results, label: str) -> bool:
    """Return whether no policy at the same learning rate has a lower mean loss beyond noise."""
    p_by_label = _known_p(results, label)
    changes = {other: difference(results.pairs(other, "loss", baseline=label)).mean for other in p_by_label}
    return bool(p_by_label) and not any(changes[other] < 0 and p < _LEVEL for other, p in p_by_label.items())


def _known_p(results: Results, label: str) -> dict[str, float]:
    """Return the corrected p-values of the policies at a run's learning rate that have two pairs with it or more."""
    p_by_label = p_values(results, "loss", baseline=label)
    same = {other for other in p_by_label if _rate(results, other) == _rate(results, label)}
    return {other: p for other, p in p_by_label.items() if other in same and not math.isnan(p)}


def _at_its_rate(results: Results) -> str:
    rates = {_rate(results, label) for label in results.plan.runs}
    return " at its learning rate" if len(rates) > 1 else ""


def _blind(results: Results, label: str) -> str:
    """Return how large a difference would have been missed: the widest of the intervals."""
    widths = [difference(results.pairs(other, "loss", baseline=label)).half_width for other in _known_p(results, label)]
    return f" (the widest interval of a difference is ± {max(widths):.4f} nats a token)"
