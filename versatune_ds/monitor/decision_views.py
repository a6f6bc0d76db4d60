"""Turn decisions into what W&B and TensorBoard show: flat metrics, and charts of the weights and the losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

_HATCHES = ("", "//", "..", "\\\\", "xx", "--")
_STYLES = ("-", "--", "-.", ":")


def decision_metrics(decision: Mapping[str, Any]) -> dict[str, float]:
    """Return a decision's numbers as {`domain/NAME/...`: value}; unknown ones are omitted.

    `excess_loss` is the validation loss minus the reference loss, not clipped.
    """
    values: dict[str, float | None] = {}
    for name, weight in decision["weights_after"].items():
        signals, loss = decision["signals"][name], decision["losses"][name]
        values |= {f"domain/{name}/{key}": value for key, value in signals.items()}
        values[f"domain/{name}/weight_decided"] = weight
        if is_of_own_signal(decision):  # the loss is held out, and this number is not
            values |= {f"domain/{name}/signal": loss["mean"], f"domain/{name}/signal_stderr": loss["stderr"]}
            continue
        values[f"domain/{name}/loss_stderr"] = loss["stderr"]
        if loss["mean"] is not None and signals.get("reference_loss") is not None:
            values[f"domain/{name}/excess_loss"] = loss["mean"] - signals["reference_loss"]
    return {name: value for name, value in values.items() if value is not None}


def weight_points(decisions: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Return (step from which it holds, weight) by domain, from the weights before the first decision on."""
    before = decisions[0]["weights_before"]
    points = {name: [(decisions[0]["decided_at_step"], weight)] for name, weight in before.items()}
    for decision in decisions:
        for name, weight in decision["weights_after"].items():
            points[name].append((decision["effective_step"], weight))
    return points


def loss_points(decisions: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Return (step, validation loss in nats per token) by domain; a domain that was not measured has no point."""
    return {
        name: [
            (decision["decided_at_step"], mean)
            for decision in decisions
            if (mean := decision["losses"][name]["mean"]) is not None
        ]
        for name in decisions[0]["weights_after"]
    }


def is_of_own_signal(decision: Mapping[str, Any]) -> bool:
    """Return whether a decision's losses are what a function of the user's own returned (`mixture.signal`)."""
    return decision.get("inputs", {}).get("signal", "train") != "train"


def draw_weights(decisions: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the weights over the steps from which they apply, as stacked areas that differ in colour and hatching."""
    figure, axes = _axes("weight")
    first = decisions[0]
    steps = [first["decided_at_step"], *(decision["effective_step"] for decision in decisions)]
    names = list(first["weights_after"])
    layers = [[first["weights_before"][name], *(d["weights_after"][name] for d in decisions)] for name in names]
    areas = axes.stackplot(steps, layers, labels=names, step="post")
    for i, area in enumerate(areas):
        area.set_hatch(_HATCHES[i // 10 % len(_HATCHES)])
    axes.set_ylim(0, 1)
    axes.set_xlim(steps[0], max(steps[-1], steps[0] + 1))
    figure.legend(loc="outside lower center", ncols=min(len(names), 6), fontsize=8, frameon=False)
    return figure


def draw_losses(decisions: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the validation losses as lines, and each domain's reference as a thin horizontal line of its colour."""
    is_own = is_of_own_signal(decisions[-1])
    figure, axes = _axes(decisions[-1]["inputs"]["signal"] if is_own else "validation loss (nats per token)")
    steps = [decision["decided_at_step"] for decision in decisions]
    names = list(decisions[0]["weights_after"])
    for i, name in enumerate(names):
        means = [decision["losses"][name]["mean"] for decision in decisions]
        known = [float("nan") if mean is None else mean for mean in means]
        axes.plot(steps, known, color=f"C{i % 10}", linestyle=_STYLES[i // 10 % len(_STYLES)], marker=".", label=name)
        reference = decisions[-1]["signals"][name]["reference_loss"]
        if reference is not None:
            axes.axhline(reference, color=f"C{i % 10}", linewidth=0.7, linestyle=":")
    figure.legend(loc="outside lower center", ncols=min(len(names), 6), fontsize=8, frameon=False)
    return figure


def _axes(label: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(8, 4.5), layout="constrained", dpi=100)
    axes = figure.subplots()
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
