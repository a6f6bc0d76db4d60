"""Write a comparison's page in Markdown and HTML: how it was made, findings, tables and pictures.

Every sentence of the findings follows from the table by a rule that it states. So the same numbers give the same
sentences, and nothing is claimed that is not in the table.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from versatune_ds.comparison.mixture_plans import purpose_of
from versatune_ds.comparison.plan import ComparisonPlan
from versatune_ds.comparison.results_page.checkpoints import checkpoints_section
from versatune_ds.comparison.results_page.choice_accuracies import chance_levels, choices_section
from versatune_ds.comparison.results_page.compute import compute_section
from versatune_ds.comparison.results_page.domain_losses import losses_section
from versatune_ds.comparison.results_page.effects import effects_section
from versatune_ds.comparison.results_page.expansion_table import expansion_section
from versatune_ds.comparison.results_page.headroom_text import headroom_section
from versatune_ds.comparison.results_page.pictures import draw_policies, draw_retention, draw_weights
from versatune_ds.comparison.results_page.results import Results
from versatune_ds.comparison.results_page.run_records import run_records
from versatune_ds.comparison.results_page.table import (
    HEADINGS,
    is_better,
    judged_by,
    markdown_table,
    number,
    p_values,
    retention_table,
)
from versatune_ds.comparison.static_mixtures import SEED
from versatune_ds.config.section import Section
from versatune_ds.export.model_card import escaped
from versatune_ds.report.document import write_document
from versatune_ds.run_folder.atomic import write_text

_HOW_IT_WAS_MADE = """One base model, the same data, budget and schedule. Means with Student's 95 % intervals {units};
in brackets the paired difference from `{baseline}`, \\* where it differs from 0 at 5 % after Holm's correction over the
policies."""

_HOW_TO_READ = """Mean loss: nats per loss token, plain mean over domains; bits a byte: the same loss by byte of its
text; lower is better. In the other columns higher is better. Worst domain: relative fall of the loss where it fell
least, negative where the domain was forgotten. Other domains: the mean relative fall of the loss over all domains but
the target, negative where they degraded. Seeds won: in how many of the pairs of runs with `{baseline}` {won}."""

_MUCH = 0.05
"""Relative rise of the worst domain's loss from which a policy counts as forgetting."""
_LEVEL = 0.05
"""Adjusted p-value below which a difference is beyond noise."""


def write_page(results: Results, *, command: str, versions: dict[str, str | None], missing: str | None = None) -> Path:
    """Write README.md, index.html and the pictures into the comparison's folder; return README.md's path.

    `missing` says which runs an incomplete comparison lacks.
    """
    folder = results.plan.folder
    draw_policies(results, folder / "comparison.png")
    draw_retention(results, folder / "retention.png")
    draw_weights(results, folder / "weights.png")
    page = folder / "README.md"
    paragraphs = list(_paragraphs(results, command=command, versions=versions))
    if missing is not None:
        paragraphs[3:3] = [missing, ""]  # behind the title and how it was made
    text = "\n".join(paragraphs) + "\n"
    write_text(page, text)
    write_document(text, folder / "index.html", title=f"Comparison {results.plan.name}")
    return page


def _paragraphs(results: Results, *, command: str, versions: dict[str, str | None]) -> Sequence[str]:
    plan, base, records = results.plan, results.base, run_records(results)
    losses = ", ".join(f"{escaped(name)} {base[name]['loss']:.4f}" for name in results.domain_names())
    made = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    repeats = f"{len(plan.seeds)} seeds" + (f" x {len(plan.targets)} targets" if plan.targets else "")
    won = "its other domains kept more" if plan.targets else "its mean loss is lower"
    return [
        f"# Comparison {plan.name}",
        "",
        f"`{command}`, {date.today().isoformat()}; {made}.",
        "",
        f"{len(plan.runs)} policies x {repeats}. {_how_it_was_made(results)}",
        _rows_sentence(results),
        "",
        "## What it says",
        "",
        *(f"- {sentence}" for sentence in findings(results)),
        "",
        markdown_table(results),
        "",
        _HOW_TO_READ.format(baseline=plan.baseline, won=won),
        "",
        "![Every policy as a point](comparison.png)",
        "",
        *effects_section(results),
        *expansion_section(results),
        *headroom_section(results),
        f"## By domain: relative fall of the {results.split} loss since the base model, in percent",
        "",
        retention_table(results),
        "",
        f"The base model's losses: {losses}.",
        "",
        "![The same as a heat map](retention.png)",
        "",
        *losses_section(results),
        *choices_section(results, chance=chance_levels(plan.choices)),
        *checkpoints_section(results, records),
        "## The weights each policy ended with",
        "",
        "![Weights by policy and domain](weights.png)",
        "",
        *compute_section(results, records),
        "## What each run sets",
        "",
        *(f"- `{label}`: `{json.dumps(values)}`" for label, values in plan.runs.items()),
        *(f"- {{plan:{name}}}: `{json.dumps(_plan_keys(keys))}`" for name, keys in plan.plans.items()),
        *_drawn_sentence(plan),
        f"- all of them: `{json.dumps(plan.set, default=str)}`",
        f"- the base model: {plan.base.describe()}",
    ]


def _how_it_was_made(results: Results) -> str:
    """Return how the numbers were made, and over which population the intervals and tests are."""
    plan, units = results.plan, "over the seeds"
    if len(plan.targets) > 1:
        units = f"over the {len(plan.targets)} targets, the seeds of each averaged first"
    elif plan.targets:
        units = f"over the seeds of the one target, {escaped(plan.targets[0])}"
    return _HOW_IT_WAS_MADE.format(baseline=plan.baseline, units=units)


def _plan_keys(keys: Section) -> dict[str, Any]:
    """Return the options of a plan that are not the defaults, and its purpose."""
    return {"for": purpose_of(keys), **keys.model_dump(mode="json", exclude_defaults=True)}


def _drawn_sentence(plan: ComparisonPlan) -> list[str]:
    """Return what the drawn fixed mixtures set."""
    if not plan.static:
        return []
    concentrations = ", ".join(f"{value:g}" for value in plan.static_concentration)
    seeds = ", ".join(map(str, plan.seeds[: plan.static_seeds]))
    drawn = f"Dirichlet distributions of concentration {concentrations} in turn (generator seed {SEED})"
    return [f"- {plan.static} fixed mixtures: `constant` on weights from {drawn}, with seeds {seeds}"]


def _rows_sentence(results: Results) -> str:
    """Return which examples every model was evaluated on, and how many they are."""
    counts = ", ".join(f"{escaped(name)} {numbers['num_examples']:,}" for name, numbers in results.base.items())
    if results.split == "test":
        return f"Evaluated on test rows that no run trains on: {counts}."
    return f"The data have no test rows: evaluated on the held-out rows that also steer the mixture: {counts}."


def findings(results: Results) -> list[str]:
    """Return the sentences: best on either axis, better than the baseline on both, and what was forgotten."""
    axes = judged_by(results)
    sentences = [sentence for measure in dict.fromkeys((*axes, "worst")) for sentence in _best(results, measure)]
    if len(results.plan.runs) > 1:
        sentences += _better_on_both(results, axes)
    return [*sentences, _forgot(results)]


def _best(results: Results, measure: str) -> list[str]:
    """Return which policy is best in a measure, beside the baseline; nothing where the baseline has no run yet."""
    baseline = results.plan.baseline
    means = {label: results.mean(label, measure).mean for label in results.plan.runs}
    if math.isnan(means[baseline]):
        return []
    best = baseline
    for label, mean in means.items():
        best = label if is_better(mean, means[best], measure) else best
    beside = "" if best == baseline else f" against {number(means[baseline], measure)} for `{baseline}`"
    return [f"{HEADINGS[measure].capitalize()}: `{best}` is best, {number(means[best], measure)}{beside}."]


def _better_on_both(results: Results, axes: Sequence[str]) -> list[str]:
    """Return the policies better than the baseline on both axes: beyond noise on both, and in the means alone."""
    baseline = results.plan.baseline
    p_by_measure = [p_values(results, measure) for measure in axes]
    better = [
        label
        for label in results.plan.runs
        if all(is_better(results.mean(label, m).mean, results.mean(baseline, m).mean, m) for m in axes)
    ]
    sure = [label for label in better if all(p[label] < _LEVEL for p in p_by_measure)]
    both = " and ".join(HEADINGS[measure] for measure in axes)
    sentences = [f"Better than `{baseline}` in both {both}, beyond noise (5 %, Holm): {_names(sure)}."]
    within = [label for label in better if label not in sure]
    return [*sentences, f"In both means, but not beyond noise in both: {_names(within)}."] if within else sentences


def _forgot(results: Results) -> str:
    """Return the policies whose worst domain lost more than a little, in the mean."""
    worst = {label: results.mean(label, "worst").mean for label in results.plan.runs}
    forgot = [f"`{label}` ({number(mean, 'worst')})" for label, mean in worst.items() if mean < -_MUCH]
    named = ", ".join(forgot) or "no policy"
    return f"Worst domain more than {100 * _MUCH:.0f} % worse than the base model's, in the mean: {named}."


def _names(labels: Sequence[str]) -> str:
    return ", ".join(f"`{label}`" for label in labels) or "none"
