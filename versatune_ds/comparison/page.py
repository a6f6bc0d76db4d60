"""Write a comparison's page: how it was made, the tables, the picture, what was found, in Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from matplotlib.figure import Figure

from versatune_ds.comparison.intervals import mean_with_interval
from versatune_ds.comparison.table import HEADINGS, Results, markdown_table, retention_table

_HOW_IT_WAS_MADE = """One base model, the same data, budget and schedule; test rows that no run trains on. Means with
Student's 95 % intervals; in brackets the paired difference from `{baseline}`, \\* where it differs from 0 at 5 % after
Holm's correction over the policies."""

_HOW_TO_READ = """Mean loss: nats per loss token, plain mean over domains; lower is better. In the other columns higher
is better. Worst domain: relative fall of the loss where it fell least, negative where the domain was forgotten. Other
domains: the mean relative fall of the loss over all domains but the target, negative where they degraded."""

_MARKERS = "osD^vP*Xh<>pd8H"


def write_page(results: Results, *, command: str, versions: dict[str, str | None]) -> Path:
    """Write README.md and the picture into the comparison's folder; return the page's path.

    Args:
        results: All evaluations.
        command: The command that made them.
        versions: Libraries, and the commit.
    """
    folder = results.plan.folder
    picture = draw(results, folder / "comparison.png")
    page = folder / "README.md"
    lines = _paragraphs(results, command=command, versions=versions, picture=picture)
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return page


def _paragraphs(results: Results, *, command: str, versions: dict[str, str | None], picture: Path) -> Sequence[str]:
    """Return the page's lines."""
    plan = results.plan
    losses = {name: numbers["loss"] for name, numbers in results.base.items() if numbers.get("loss") is not None}
    made = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    repeats = f"{len(plan.seeds)} seeds" + (f" x {len(plan.targets)} targets" if plan.targets else "")
    return [
        f"# Comparison {plan.name}",
        "",
        f"`{command}`, {date.today().isoformat()}; {made}.",
        "",
        f"{len(plan.runs)} policies x {repeats}. {_HOW_IT_WAS_MADE.format(baseline=plan.baseline)}",
        "",
        markdown_table(results),
        "",
        _HOW_TO_READ,
        "",
        f"![{picture.stem}: every policy as a point]({picture.name})",
        "",
        "## By domain: relative fall of the test loss since the base model, in percent",
        "",
        retention_table(results),
        "",
        "The base model's losses: " + ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items()) + ".",
        "",
        "## What each run sets",
        "",
        *(f"- `{label}`: `{json.dumps(values)}`" for label, values in plan.runs.items()),
        f"- all of them: `{json.dumps(plan.set)}`",
        f"- the base model: `{plan.base.recipe.name}` with `{json.dumps(plan.base.set)}`",
    ]


def draw(results: Results, path: Path) -> Path:
    """Draw every policy as a point: mean loss against worst domain, or the target's gain against the other domains."""
    across, up = ("target", "others") if results.plan.targets else ("loss", "worst")
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    for i, label in enumerate(results.plan.runs):
        x, y = (mean_with_interval(results.values(label, measure)) for measure in (across, up))
        axes.errorbar(
            x.mean, y.mean, xerr=_whisker(x.half_width), yerr=_whisker(y.half_width), label=label,
            marker=_MARKERS[i % len(_MARKERS)], color=f"C{i % 10}", linestyle="none", capsize=2, elinewidth=0.8,
        )  # fmt: skip
        axes.annotate(label, (x.mean, y.mean), xytext=(5, 5), textcoords="offset points", fontsize=8)
    axes.set_xlabel(HEADINGS[across] + (" (nats per token; further left is better)" if across == "loss" else ""))
    axes.set_ylabel(HEADINGS[up] + " (relative fall of the loss; higher is better)")
    axes.axhline(0.0, color="grey", linewidth=0.8, linestyle=":")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    return path


def _whisker(half_width: float) -> float | None:
    """Return a whisker's length, None for a single value."""
    return half_width if half_width == half_width else None
