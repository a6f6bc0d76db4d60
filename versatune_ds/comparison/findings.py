"""Summarise a comparison's numbers in a few sentences.

Every sentence follows from the table by a rule that it states. So the same numbers give the same sentences, and nothing
is claimed that is not in the table.
"""

from __future__ import annotations

from collections.abc import Sequence

from versatune_ds.comparison.intervals import mean_with_interval
from versatune_ds.comparison.table import HEADINGS, Results, is_better, judged_by, number, p_values

_MUCH = 0.05
"""Relative rise of the worst domain's loss from which a policy counts as forgetting."""
_LEVEL = 0.05
"""Adjusted p-value below which a difference is beyond noise."""


def findings(results: Results) -> list[str]:
    """Return the sentences: best on either axis, better than the baseline on both, and what was forgotten."""
    axes = judged_by(results)
    sentences = [_best(results, measure) for measure in dict.fromkeys((*axes, "worst"))]
    if len(results.plan.runs) > 1:
        sentences += _better_on_both(results, axes)
    return [*sentences, _forgot(results)]


def _mean(results: Results, label: str, measure: str) -> float:
    """Return a policy's mean of a measure."""
    return mean_with_interval(results.values(label, measure)).mean


def _best(results: Results, measure: str) -> str:
    """Return which policy is best in a measure, beside the baseline."""
    baseline = results.plan.baseline
    means = {label: _mean(results, label, measure) for label in results.plan.runs}
    best = baseline
    for label, mean in means.items():
        best = label if is_better(mean, means[best], measure) else best
    beside = "" if best == baseline else f" against {number(means[baseline], measure)} for `{baseline}`"
    return f"{HEADINGS[measure].capitalize()}: `{best}` is best, {number(means[best], measure)}{beside}."


def _better_on_both(results: Results, axes: Sequence[str]) -> list[str]:
    """Return the policies better than the baseline on both axes: beyond noise on both, and in the means alone."""
    baseline = results.plan.baseline
    p_by_measure = [p_values(results, measure) for measure in axes]
    better = [
        label
        for label in results.plan.runs
        if all(is_better(_mean(results, label, m), _mean(results, baseline, m), m) for m in axes)
    ]
    sure = [label for label in better if all(p[label] < _LEVEL for p in p_by_measure)]
    both = " and ".join(HEADINGS[measure] for measure in axes)
    sentences = [f"Better than `{baseline}` in both {both}, beyond noise (5 %, Holm): {_names(sure)}."]
    within = [label for label in better if label not in sure]
    return [*sentences, f"In both means, but not beyond noise in both: {_names(within)}."] if within else sentences


def _forgot(results: Results) -> str:
    """Return the policies whose worst domain lost more than a little, in the mean."""
    worst = {label: _mean(results, label, "worst") for label in results.plan.runs}
    forgot = [f"`{label}` ({number(mean, 'worst')})" for label, mean in worst.items() if mean < -_MUCH]
    named = ", ".join(forgot) or "no policy"
    return f"Worst domain more than {100 * _MUCH:.0f} % worse than the base model's, in the mean: {named}."


def _names(labels: Sequence[str]) -> str:
    """Return labels as text, a word for none."""
    return ", ".join(f"`{label}`" for label in labels) or "none"
