"""Draw a plan: what each domain does to the others, and the front with the chosen mixture on it.

Numbers are in the cells and labels at the points, so that nothing depends on colour alone. In the heat map white is "as
the base model", blue is a loss that falls.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from versatune_ds.mixture.planning.plan_file import Plan
from versatune_ds.mixture.planning.transfer_table import TransferTable

_DPI = 120
_STRONGEST = 1.0
"""Relative change of a loss at which the heat map's colour grows no stronger."""
_MARKERS = {"chosen": ("*", 160, "#D55E00"), "uniform": ("o", 45, "#0072B2"), "prior": ("s", 40, "#009E73")}
_OTHER_MARKER = ("D", 36, "#CC79A7")


def draw_plan(plan: Plan, table: TransferTable, path: Path) -> Path:
    """Write the picture of a plan; return its path.

    Args:
        plan: The plan, with its front.
        table: The transfer table that it was made from.
        path: Picture to write; its ending chooses the format.
    """
    num_rows = len(table.sources)
    figure = Figure(figsize=(13, max(4.2, 1.8 + 0.5 * num_rows)), layout="constrained")
    heat_axes, front_axes = figure.subplots(1, 2)
    _draw_heat_map(figure, heat_axes, table)
    _draw_front(front_axes, plan)
    figure.savefig(path, dpi=_DPI)
    return path


def _draw_heat_map(figure: Figure, axes: Axes, table: TransferTable) -> None:
    num_steps, changes_KK, _ = table.common_changes()
    names = list(table.domain_set)
    rows = [table.domain_set.id_of(name) for name in table.sources]
    columns = [k for k, name in enumerate(names) if name not in table.unmeasured]
    values = changes_KK[np.ix_(rows, columns)]
    limit = max(min(float(np.nanmax(np.abs(values))), _STRONGEST), 1e-6)
    image = axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        ink = "white" if abs(value) > 0.6 * limit else "black"
        text = f"{100 * value:+.1f}" if np.isfinite(value) else "-"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=ink)
    axes.set_xticks(range(len(columns)), [names[k] for k in columns], fontsize=8, rotation=30, ha="right")
    axes.set_yticks(range(len(rows)), [names[k] for k in rows], fontsize=8)
    axes.set_xlabel("loss of")
    axes.set_ylabel("trained on")
    axes.set_title(f"Change of the loss, in percent, {num_steps:,} steps on one domain", loc="left", fontsize=11)
    is_clipped = bool(np.nanmax(np.abs(values)) > limit)
    extend = "both" if is_clipped else "neither"
    figure.colorbar(image, ax=axes, extend=extend, format=lambda value, _: f"{100 * value:+.0f}")


def _draw_front(axes: Axes, plan: Plan) -> None:
    on_front = [point for point in plan.front if point["label"] is None]
    axes.plot(
        [point["mean"] for point in on_front], [100 * point["worst"] for point in on_front],
        color="#666666", marker=".", linewidth=1, label="front",
    )  # fmt: skip
    for points in _labelled_places(plan):
        point = points[0]
        for each in reversed(points):  # the first on top
            marker, size, colour = _MARKERS.get(each["label"], _OTHER_MARKER)
            axes.scatter(each["mean"], 100 * each["worst"], marker=marker, s=size, color=colour, zorder=3)
        text = f"{', '.join(each['label'] for each in points)} ({point['worst_domain']})"
        axes.annotate(
            text, (point["mean"], 100 * point["worst"]), xytext=(6, 6), textcoords="offset points", fontsize=8
        )
    axes.axhline(0.0, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xlabel("predicted mean loss (nats per token); further left and lower is better")
    axes.set_ylabel("worst domain: change of its loss (percent)")
    axes.set_title(f"Mean against worst domain, plan for {plan.purpose}", loc="left", fontsize=11)
    axes.margins(x=0.18, y=0.12)
    axes.spines[["top", "right"]].set_visible(False)


def _labelled_places(plan: Plan) -> list[list[Mapping[str, Any]]]:
    """Return the labelled points of the front, those that lie in the same place together."""
    places: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for point in plan.front:
        if point["label"] is not None:
            places.setdefault((f"{point['mean']:.3g}", f"{point['worst']:.3f}"), []).append(point)
    return list(places.values())
