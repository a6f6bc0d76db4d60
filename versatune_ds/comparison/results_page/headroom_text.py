"""Write the section of a comparison's page on how much any mixture could gain."""

from __future__ import annotations

import math
from collections.abc import Sequence

from versatune_ds.comparison.headroom import (
    MATTERS,
    Best,
    Share,
    best_of,
    drawn_labels,
    fixed_labels,
    front_distances,
    gains_of,
    headroom_of,
    is_measurable,
    rank_correlation,
    seeming_headroom_of,
    share_of,
)
from versatune_ds.comparison.mixture_plans import plan_names
from versatune_ds.comparison.results_page.results import Results
from versatune_ds.export.model_card import escaped

_HOW_TO_READ = """Gain: how far the mean loss is below that of `{uniform}` with the same seed, as a share of it. Share
of the headroom: the policy's gain over that of the best fixed mixture, both on {measured_on}; in brackets a 95 %
bootstrap interval over these seeds, too narrow for so few. To the front: how many percentage points a policy would have
to rise on both axes, fall of the mean loss and worst domain against the base model, so that no other fixed mixture is
better on both (on {front_on}); negative where it lies beyond all of them."""


def headroom_section(results: Results) -> list[str]:
    """Return the section's paragraphs; none where no fixed mixtures were drawn."""
    if not drawn_labels(results):
        return []
    title = "## How much could any mixture gain here?"
    if not is_measurable(results):
        return [title, "", "Not known yet: no seed has uniform and all fixed mixtures.", ""]
    gains = gains_of(results)
    best = best_of(gains, fixed_labels(results), seeds=results.plan.seeds)
    shares = {label: share_of(results, best, label) for label in results.plan.runs}
    distances = front_distances(results, seeds=best.seeds)
    lines = [
        f"| {escaped(label)} | {_percent(share.gain)} | {_share_text(share)} | {100 * distances[label]:+.2f} |"
        for label, share in shares.items()
        if not math.isnan(share.gain + distances[label])  # none of its runs is there yet
    ]
    return [
        title,
        "",
        *(f"- {sentence}" for sentence in _sentences(results, best, shares)),
        "",
        "| policy | gain, % | share of the headroom, % | to the front, points |",
        "|---|---:|---:|---:|",
        *lines,
        "",
        _HOW_TO_READ.format(
            uniform=results.uniform, measured_on=_seeds_text(tuple(best.gains)), front_on=_seeds_text(best.seeds)
        ),
        "",
    ]


def _sentences(results: Results, best: Best, shares: dict[str, Share]) -> list[str]:
    """Return the sentences on the headroom, on whether mixtures matter here, and on the plans."""
    headroom = headroom_of(results, best)
    sentences = [_best_sentence(results, best), _curse_sentence(results, best), *_verdict(results, headroom, shares)]
    drawn = best_of(gains_of(results), drawn_labels(results), seeds=results.plan.seeds)
    if drawn.label != best.label:
        gain = _percent(headroom_of(results, drawn))
        sentences.append(f"The best of those drawn at random, {_name(results, drawn.label)}, gains {gain}.")
    return [*sentences, *_plan_sentences(results, best, shares)]


def _best_sentence(results: Results, best: Best) -> str:
    num_drawn = len(drawn_labels(results))
    num_others = len(fixed_labels(results)) - num_drawn
    others = f" and {num_others} of the runs above" if num_others else ""
    return (
        f"Of {num_drawn} fixed mixtures drawn at random{others}, {_name(results, best.label)} has the lowest mean loss "
        f"on {_seeds_text(best.seeds)}."
    )


def _curse_sentence(results: Results, best: Best) -> str:
    """Return the gain of the best mixture, and how far it can be believed."""
    gain, num = _percent(headroom_of(results, best)), len(fixed_labels(results))
    if best.judged == "same seed":
        return (
            f"It gains {gain}, on the one seed that chose it: too high, since the best of {num} is chosen by noise "
            "too, and every share below is too low. Add a seed."
        )
    seeming = f" ({_percent(seeming_headroom_of(results, best))} on the seeds that chose it)"
    if best.judged == "other seeds":
        return f"With {_seeds_text(tuple(best.gains))}, which did not choose it, it gains {gain}{seeming}."
    return (
        f"The best of {num} is chosen by noise too. Chosen without each seed in turn and measured on it, the best "
        f"gains {gain}{seeming}."
    )


def _verdict(results: Results, headroom: float, shares: dict[str, Share]) -> list[str]:
    """Return whether mixtures matter: not where neither a fixed mixture nor a policy gains enough."""
    if headroom >= MATTERS:
        return []
    least = f"{100 * MATTERS:.0f} %"
    gaining = [f"`{label}` ({_percent(share.gain)})" for label, share in shares.items() if share.gain >= MATTERS]
    if gaining:
        return [f"No fixed mixture gains {least} over `{results.uniform}`, but {', '.join(gaining)} does."]
    return [f"Mixtures do not matter here: the headroom is under {least}."]


def _plan_sentences(results: Results, best: Best, shares: dict[str, Share]) -> list[str]:
    """Return how well the plans' predictors rank the drawn mixtures, and what share the planned runs take."""
    sentences = []
    for name, predicted in results.predicted.items():
        correlation = rank_correlation(results, predicted, seeds=best.seeds)
        if correlation is not None:
            sentences.append(
                f"Rank correlation of predicted (planner {name}) and measured mean loss over the {len(predicted)} "
                f"drawn mixtures: {correlation:.2f}."
            )
    planned = [label for label, values in results.plan.runs.items() if any(plan_names(values))]
    takes = [f"`{label}` {_share_text(shares[label])}" for label in planned if shares[label].share is not None]
    return (
        [*sentences, f"Share of the headroom that runs from a plan take: {', '.join(takes)}."] if takes else sentences
    )


def _name(results: Results, label: str) -> str:
    """Return a mixture's label, with its weights where it was drawn."""
    mixture = next(cell.mixture for cell in results.domains if cell.label == label)
    if mixture is None:
        return f"`{label}`"
    return f"`{label}` ({', '.join(f'{escaped(name)} {weight:.2f}' for name, weight in mixture)})"


def _seeds_text(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _share_text(share: Share) -> str:
    if share.share is None:
        return "-"
    interval = "" if math.isnan(share.low) else f" ({100 * share.low:.0f} to {100 * share.high:.0f} %)"
    return f"{100 * share.share:.0f} %{interval}"


def _percent(value: float) -> str:
    return f"{100 * value:+.2f} %"
