"""Draw a comparison: every policy as a point, the change of each domain's loss, and each policy's last weights.

Numbers are in the cells and bars, so that nothing depends on colour alone. In the heat map white is "as the base
model", and beyond half of the loss the colour grows no stronger, so that one collapse does not pale the rest.

Shape legend: **R** rows of the pages, a policy or a policy with a target.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from versatune_ds.comparison.results_page.results import Results
from versatune_ds.comparison.results_page.table import HEADINGS, judged_by, retention, row_title

_DPI = 110
_MARKERS = "osD^vP*Xh<>pd8H"
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#8C564B")
_STRONGEST = 0.5
"""Relative change of a loss at which the heat map's colour grows no stronger."""
_NARROWEST = 0.05
"""Weight from which a bar has room for its number."""


def draw_policies(results: Results, path: Path) -> None:
    """Draw every policy as a point: mean loss against worst domain, or the target's gain against the other domains."""
    across, up = judged_by(results)
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    for i, label in enumerate(results.plan.runs):
        x, y = (results.mean(label, measure) for measure in (across, up))
        if math.isnan(x.mean):  # none of its runs is there
            continue
        axes.errorbar(
            x.mean, y.mean, xerr=_whisker(x.half_width), yerr=_whisker(y.half_width), label=label,
            marker=_MARKERS[i % len(_MARKERS)], color=f"C{i % 10}", linestyle="none", capsize=2, elinewidth=0.8,
        )  # fmt: skip
        axes.annotate(label, (x.mean, y.mean), xytext=(5, 5), textcoords="offset points", fontsize=8)
    drawn = list(dict.fromkeys(cell.label for cell in results.domains if cell.mixture is not None))
    if drawn:
        x_P, y_P = ([results.mean(label, measure).mean for label in drawn] for measure in (across, up))
        axes.scatter(x_P, y_P, s=12, color="lightgrey", zorder=0, label="fixed mixtures drawn at random")
        axes.legend(loc="best", frameon=False, fontsize=8, handles=[axes.collections[-1]])
    axes.set_xlabel(HEADINGS[across] + (" (nats per token; further left is better)" if across == "loss" else ""))
    axes.set_ylabel(HEADINGS[up] + " (relative fall of the loss; higher is better)")
    axes.axhline(0.0, color="grey", linewidth=0.8, linestyle=":")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=_DPI)


def draw_retention(results: Results, path: Path) -> None:
    """Draw the retention matrix as a heat map, blue where a domain was learned and red where it was forgotten."""
    values, names = np.array(retention(results)), results.domain_names()
    strongest = float(np.nanmax(np.abs(values), initial=0.0))  # NaN: a row whose runs are missing
    limit = max(min(strongest, _STRONGEST), 1e-6)
    figure, axes = _rows_figure(results)
    image = axes.imshow(values, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if math.isnan(value):
            continue
        ink = "white" if abs(value) > 0.6 * limit else "black"
        axes.text(column, row, f"{100 * value:+.1f}", ha="center", va="center", fontsize=8, color=ink)
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_title("relative fall of the loss since the base model, in percent", loc="left", fontsize=10)
    is_clipped = strongest > limit
    figure.colorbar(image, ax=axes, extend="both" if is_clipped else "neither", format=lambda v, _: f"{100 * v:+.0f}")
    figure.savefig(path, dpi=_DPI)


def draw_weights(results: Results, path: Path) -> None:
    """Draw the weights each policy ended with, means over the seeds, as bars whose parts are the domains."""
    figure, axes = _rows_figure(results)
    names = list(dict.fromkeys(name for weights in results.weights.values() for name in weights))
    cells_R = [results.cells(label, target) for label, target in results.rows()]
    left_R = np.zeros(len(cells_R))
    for k, name in enumerate(names):
        shares_R = [[results.weights[cell].get(name, 0.0) for cell in cells] for cells in cells_R]
        means_R = np.array([np.mean(shares) if shares else 0.0 for shares in shares_R])
        bars = axes.barh(range(len(means_R)), means_R, left=left_R, color=_COLOURS[k % len(_COLOURS)], label=name)
        texts = [f"{mean:.2f}" if mean >= _NARROWEST else "" for mean in means_R]
        axes.bar_label(bars, texts, label_type="center", fontsize=7, color="white")
        left_R += means_R
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_title("weights at the end, means over the seeds", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    figure.savefig(path, dpi=_DPI)


def _rows_figure(results: Results) -> tuple[Figure, Axes]:
    """Return a figure with the height its rows need, and their titles."""
    titles = [row_title(label, target) for label, target in results.rows()]
    figure = Figure(figsize=(8, 1.4 + 0.3 * len(titles)), layout="constrained")
    axes = figure.subplots()
    axes.set_yticks(range(len(titles)), titles, fontsize=8)
    return figure, axes


def _whisker(half_width: float) -> float | None:
    """Return a whisker's length, None for a single value."""
    return None if math.isnan(half_width) else half_width
