"""Draw the decisions of a simulation: six panels over the same steps, one line a domain.

Domains differ in colour and in line style.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from versatune_ds.mixture.decision import Decision, above_reference

_STYLES = ("-", "--", "-.", ":")

Value = Callable[[Decision, str], float | None]

_PANELS: dict[str, Value] = {
    "Weight decided": lambda decision, name: decision.weights_after[name],
    "Loss (nats per token)": lambda decision, name: decision.losses[name]["mean"],
    "Loss above its reference (nats per token)": lambda decision, name: above_reference(
        decision.losses[name]["mean"], decision.signals[name]["reference_loss"]
    ),
    "Learnable potential": lambda decision, name: decision.signals[name]["learnable_potential"],
    "Forgetting from the best": lambda decision, name: decision.signals[name]["forgetting_from_best"],
    "Forgetting from the start": lambda decision, name: decision.signals[name]["forgetting_from_start"],
}


def plot_decisions(decisions: Sequence[Decision], path: Path) -> Path:
    """Write one picture with weights, losses, potential and forgetting at every decision; return its path.

    Args:
        decisions: At least one, in the order they were made.
        path: Picture to write; its ending chooses the format, PNG without one.
    """
    figure = Figure(figsize=(11, 10), layout="constrained")
    panels = figure.subplots(3, 2, sharex=True)
    for axes, (title, value) in zip(panels.flat, _PANELS.items(), strict=True):
        _draw(axes, decisions, value)
        axes.set_title(title, loc="left", fontsize=11)
    for axes in panels[-1]:
        axes.set_xlabel("optimizer step")
    handles, names = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 8), fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, format=path.suffix.lstrip(".") or "png")
    return path


def _draw(axes: Axes, decisions: Sequence[Decision], value: Value) -> None:
    """Draw one line a domain; an unknown value leaves a gap."""
    steps, marker = [decision.decided_at_step for decision in decisions], "." if len(decisions) <= 30 else ""
    for i, name in enumerate(decisions[0].weights_after):
        known = [float("nan") if (number := value(decision, name)) is None else number for decision in decisions]
        axes.plot(steps, known, marker=marker, color=f"C{i % 10}", linestyle=_STYLES[i % len(_STYLES)], label=name)
    axes.spines[["top", "right"]].set_visible(False)
