"""Draw a run's weights and losses, or the decisions of a simulation, as one picture.

Domains differ in colour and in line style.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from versatune_ds.mixture.decision import Decision, above_reference
from versatune_ds.report.series import RunSeries, requested_weights, training_losses

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C564B")
_STYLES = ("-", "--", "-.", ":")

_Value = Callable[[Decision, str], float | None]
_Points = Sequence[tuple[int, float | None]]

_PANELS: dict[str, _Value] = {
    "Weight decided": lambda decision, name: decision.weights_after[name],
    "Loss (nats per token)": lambda decision, name: decision.losses[name]["mean"],
    "Loss above its reference (nats per token)": lambda decision, name: above_reference(
        decision.losses[name]["mean"], decision.signals[name]["reference_loss"]
    ),
    "Learnable potential": lambda decision, name: decision.signals[name]["learnable_potential"],
    "Forgetting from the best": lambda decision, name: decision.signals[name]["forgetting_from_best"],
    "Forgetting from the start": lambda decision, name: decision.signals[name]["forgetting_from_start"],
}


def plot_weights(series: RunSeries, path: Path) -> Path:
    """Write one picture with the weights over the steps above the losses that steered; return its path.

    Args:
        series: The run; a panel without recorded values stays empty.
        path: Picture to write; its ending (png, svg, pdf) chooses the format.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(8, 7), layout="constrained")
    weights_axes, loss_axes = figure.subplots(2, 1, sharex=True)
    steps, weights = requested_weights(series)
    points = {name: list(zip(steps, values, strict=True)) for name, values in weights.items()}
    _draw_steps(weights_axes, points, title="Mixture weights", is_step=True)
    weights_axes.set_ylim(bottom=0)
    losses, whose = _loss_points(series)
    _draw_steps(loss_axes, losses, title=f"{whose} loss (nats per token, logarithmic)", is_step=False)
    loss_axes.set_yscale("log")
    for set_formatter in (loss_axes.yaxis.set_major_formatter, loss_axes.yaxis.set_minor_formatter):
        set_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    loss_axes.set_xlabel("optimizer step")
    figure.legend(*weights_axes.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    figure.savefig(path, dpi=120)
    return path


def _loss_points(series: RunSeries) -> tuple[Mapping[str, _Points], str]:
    """Return {domain: [(step, loss)]} of the losses that decisions used, and `Training` or `Validation`."""
    trained = {name: sorted(training_losses(series, name).values.items()) for name in series.domain_names}
    if any(trained.values()):
        return trained, "Training"
    return {name: series.of(f"domain/{name}/loss") for name in series.domain_names}, "Validation"


def _draw_steps(axes: Axes, points_by_domain: Mapping[str, _Points], *, title: str, is_step: bool) -> None:
    """Draw one line per domain through its known points, labelled at its end."""
    ends: list[tuple[float, float, str]] = []
    for i, (name, all_points) in enumerate(points_by_domain.items()):
        points = [(step, value) for step, value in all_points if value is not None]
        if not points:
            continue
        steps, values = zip(*points, strict=True)
        style = {"color": _COLOURS[i % len(_COLOURS)], "linestyle": _STYLES[i % len(_STYLES)]}
        axes.plot(steps, values, drawstyle="steps-post" if is_step else "default", label=name, **style)
        ends.append((values[-1], steps[-1], name))
    for rank, (value, step, name) in enumerate(sorted(ends)):
        # Labels alternate between two columns: neighbours often end at nearly the same height.
        offset = (4 + 52 * (rank % 2), 0)
        axes.annotate(name, (step, value), xytext=offset, textcoords="offset points", fontsize=8, va="center")
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)


def plot_decisions(decisions: Sequence[Decision], path: Path) -> Path:
    """Write one picture with weights, losses, potential and forgetting at every decision; return its path.

    Args:
        decisions: At least one, in the order they were made.
        path: Picture to write; its ending chooses the format, PNG without one.
    """
    figure = Figure(figsize=(11, 10), layout="constrained")
    panels = figure.subplots(3, 2, sharex=True)
    for axes, (title, value) in zip(panels.flat, _PANELS.items(), strict=True):
        _draw_decisions(axes, decisions, value)
        axes.set_title(title, loc="left", fontsize=11)
    for axes in panels[-1]:
        axes.set_xlabel("optimizer step")
    handles, names = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 8), fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, format=path.suffix.lstrip(".") or "png")
    return path


def _draw_decisions(axes: Axes, decisions: Sequence[Decision], value: _Value) -> None:
    """Draw one line a domain; an unknown value leaves a gap."""
    steps, marker = [decision.decided_at_step for decision in decisions], "." if len(decisions) <= 30 else ""
    for i, name in enumerate(decisions[0].weights_after):
        known = [float("nan") if (number := value(decision, name)) is None else number for decision in decisions]
        axes.plot(steps, known, marker=marker, color=f"C{i % 10}", linestyle=_STYLES[i % len(_STYLES)], label=name)
    axes.spines[["top", "right"]].set_visible(False)
