"""Write the section on multiple choice: accuracy by domain, the base model's beside it, chance, and what is noise.

Two kinds of noise: another seed gives another model, which Student's interval over the seeds measures; other questions
would give other answers, which no seed shows. Evaluations keep counts of right answers, not the answers, so the second
kind is bounded with the binomial variance of two independent models. Two models that answer the same questions are more
alike, so that the bound is on the safe side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from versatune_ds.comparison.cells import Cell
from versatune_ds.comparison.outcome import Domains
from versatune_ds.comparison.results_page.intervals import Mean, difference, mean_with_interval
from versatune_ds.comparison.results_page.results import Results
from versatune_ds.comparison.results_page.table import as_table
from versatune_ds.evaluation.choices import ChoiceQuestion, read_choices
from versatune_ds.export.model_card import escaped

_Z_95 = 1.959964
_MEAN = "mean over domains"

_HOW_TO_READ = """Accuracy: share of questions whose right option has the highest likelihood a byte. In brackets the
paired difference from `{baseline}` in points, with Student's 95 % interval {units}: it holds for other runs and these
questions."""


def chance_levels(paths: Sequence[Path]) -> dict[str, float]:
    """Return by domain the accuracy of guessing; empty where the files of questions are not there any more.

    A page is written again from results alone, perhaps on another machine.
    """
    if not paths or not all(path.exists() for path in paths):
        return {}
    return {name: chance_of(questions) for name, questions in read_choices(paths).items()}


def chance_of(questions: Sequence[ChoiceQuestion]) -> float:
    """Return the mean of 1 / options.

    Worked example: one question of two options, one of four: 0.375.
    """
    return sum(1 / len(question.choices) for question in questions) / len(questions)


def noise_of_difference(accuracies: Mapping[str, float], num_questions: Mapping[str, int]) -> float:
    """Return the difference of two models' mean accuracies that 95 % of pairs of equally good models stay below.

    Each answers n questions of a domain, right with the same probability p: a difference of two accuracies has variance
    2 p (1 - p) / n, and that of the means over K domains their sum / K^2. For p see `_variance`.

    Worked example: one domain, p 0.5, n 50: 1.96 * sqrt(0.01) = 0.196.
    """
    variances = [2 * _variance(accuracy, num_questions[name]) for name, accuracy in accuracies.items()]
    return _Z_95 * math.sqrt(sum(variances)) / len(variances)


def noise_of_one(accuracy: float, num_questions: int) -> float:
    """Return the 95 % half-width of one model's accuracy over the choice of questions.

    Worked example: accuracy 0.5 of 100 questions: 0.098.
    """
    return _Z_95 * math.sqrt(_variance(accuracy, num_questions))


def _variance(accuracy: float, num_questions: int) -> float:
    """Return p (1 - p) / n with Laplace's p = (right + 1) / (n + 2): three right of three are no certainty."""
    p = (accuracy * num_questions + 1) / (num_questions + 2)
    return p * (1 - p) / num_questions


def choices_section(results: Results, *, chance: Mapping[str, float]) -> list[str]:
    """Return the section's paragraphs; none where no questions were asked.

    Args:
        results: The comparison's.
        chance: Accuracy of guessing by domain, as far as it is known.
    """
    names = [name for name, numbers in results.base.items() if "choices" in numbers]
    if not names:
        return []
    rows = [["base model", *(_share(value) for value in _accuracies(results.base, names))]]
    if all(name in chance for name in names):
        levels = [chance[name] for name in names]
        rows.append(["chance", *map(_share, [*levels, sum(levels) / len(levels)])])
    for label in results.plan.runs:
        rows.append([escaped(label), *(_cell(results, label, name, names) for name in [*names, _MEAN])])
    units = "over the targets" if len(results.plan.targets) > 1 else "over the seeds"
    return [
        "## Multiple choice: accuracy by domain, in percent",
        "",
        *(f"- {sentence}" for sentence in _sentences(results, names, chance)),
        "",
        as_table(["policy", *map(escaped, names), _MEAN], rows),
        "",
        _HOW_TO_READ.format(baseline=results.plan.baseline, units=units),
        "",
    ]


def _accuracy(domains: Domains, name: str, names: Sequence[str]) -> float | None:
    """Return a domain's accuracy, or the mean over domains; None where a domain was not measured."""
    values = [domains.get(n, {}).get("choices", {}).get("accuracy") for n in (names if name == _MEAN else [name])]
    return None if None in values else sum(values) / len(values)


def _accuracies(domains: Domains, names: Sequence[str]) -> list[float | None]:
    return [_accuracy(domains, name, names) for name in [*names, _MEAN]]


def _cell(results: Results, label: str, name: str, names: Sequence[str]) -> str:
    """Return a policy's mean accuracy in a domain, and its paired difference from the baseline."""

    def value(cell: Cell) -> float | None:
        return _accuracy(results.domains[cell], name, names)

    mean = mean_with_interval(results.values_of(label, value)).mean
    change = difference(results.pairs_of(label, value))
    text = _share(None if math.isnan(mean) else mean)
    return text if label == results.plan.baseline or math.isnan(change.mean) else f"{text} ({_points(change)})"


def _sentences(results: Results, names: Sequence[str], chance: Mapping[str, float]) -> list[str]:
    """Return how many questions there are, what is noise, and which domains the base model only guesses in."""
    counts = {name: results.base[name]["choices"]["num_questions"] for name in names}
    accuracies = {name: results.base[name]["choices"]["accuracy"] for name in names}
    listed = ", ".join(f"{escaped(name)} {count:,}" for name, count in counts.items())
    by_domain = max(noise_of_difference({name: accuracies[name]}, counts) for name in names)
    of_mean = noise_of_difference(accuracies, counts)
    counted = (
        f"Questions: {listed}. At these counts, differences between two models under {100 * of_mean:.1f} points of the "
        f"mean, and under {100 * by_domain:.1f} points of a domain, are noise of the choice of questions (95 %, as if "
        "the two answered independently; on the same questions it is less)."
    )
    if any(name not in chance for name in names):
        return [counted, "Chance level: not known, since the files of questions are not there."]
    at_chance = [
        name for name in names if accuracies[name] - chance[name] < noise_of_one(accuracies[name], counts[name])
    ]
    guessed = ", ".join(map(escaped, at_chance)) or "no domain"
    return [counted, f"Domains in which the base model is not above chance beyond that noise: {guessed}."]


def _points(change: Mean) -> str:
    half = "" if math.isnan(change.half_width) else f" ± {100 * change.half_width:.1f}"
    return f"{100 * change.mean:+.1f}{half}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
