"""Describe decisions and simulations as text: a sentence first, then the numbers behind it.

Everything shown is read from the decisions themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from versatune_ds.domains import DomainSet
from versatune_ds.mixture.decision import Decision, above_reference
from versatune_ds.mixture.offline.replay import NOT_COUNTERFACTUAL, first_difference
from versatune_ds.mixture.offline.simulate import Simulation
from versatune_ds.mixture.weights import effective_num_domains
from versatune_ds.text_table import number_cell, paragraph, text_table

_MAX_ROWS = 24
"""Rows of a table over updates; longer histories are thinned evenly, first and last kept."""


def decision_at(decisions: Sequence[Decision], step: int) -> Decision:
    """Return the last decision made at or before a step.

    Raises:
        ValueError: If the first one was made later.
    """
    made = [decision for decision in decisions if decision.decided_at_step <= step]
    if not made:
        raise ValueError(
            f"no decision at or before step {step}; the first was made after step {decisions[0].decided_at_step}"
        )
    return made[-1]


def explain(decision: Decision) -> str:
    """Return the text of one decision: when, why, a table by domain, safeguards, inputs, digest."""
    is_planned = any("track_loss" in signals for signals in decision.signals.values())
    header = (
        "domain", "loss", "+-", *(("plan", "+-") if is_planned else ()), "reference", "above", "potential", "forgot",
        "over best", "over start", "weight", "change",
    )  # fmt: skip
    rows = [_domain_row(decision, name, is_planned=is_planned) for name in decision.weights_after]
    before, after = (
        effective_num_domains(np.array([*w.values()])) for w in (decision.weights_before, decision.weights_after)
    )
    others = {key: value for key, value in decision.inputs.items() if not key.startswith("train_loss")}
    when = f"decided after step {decision.decided_at_step}, in effect from step {decision.effective_step}"
    lines = [
        f"Update {decision.update}, {when}.",
        paragraph(decision.reason),
        "",
        text_table(header, rows),
        "",
        f"Effective number of domains: {before:.2f} before, {after:.2f} after.",
        paragraph("Safeguards that acted: " + ("; ".join(decision.acted) or "none") + "."),
        "Inputs besides losses: " + (", ".join(f"{k}={v}" for k, v in others.items()) or "none") + ".",
        *_own_signal(decision),
        *map(paragraph, _training_losses(decision)),
        f"Digest: {decision.digest}",
    ]
    return "\n".join(lines)


def _own_signal(decision: Decision) -> list[str]:
    """Return a line where a signal of the user's own supplied the losses; empty elsewhere."""
    name = decision.inputs.get("signal", "train")
    return [] if name == "train" else [f"The losses are what {name} returned, in its own unit, not held-out losses."]


def _training_losses(decision: Decision) -> list[str]:
    """Return the line on the training losses that over-fitting is recognised by; empty where none were recorded."""
    losses = decision.inputs.get("train_losses", {})
    listed = ", ".join(f"{name} {losses[name]:.4f}" for name in decision.weights_after if name in losses)
    return [f"Training losses since the last update: {listed}."] if listed else []


def _domain_row(decision: Decision, name: str, *, is_planned: bool) -> tuple[str, ...]:
    losses, signals = decision.losses[name], decision.signals[name]
    before, after = decision.weights_before[name], decision.weights_after[name]
    return (
        name,
        number_cell(losses["mean"], ".4f"),
        number_cell(losses["stderr"], ".4f"),
        *(number_cell(signals[key], ".4f") for key in (("track_loss", "track_stderr") if is_planned else ())),
        number_cell(signals["reference_loss"], ".4f"),
        number_cell(above_reference(losses["mean"], signals["reference_loss"]), ".4f"),
        number_cell(signals["learnable_potential"], ".4f"),
        number_cell(signals["forgetting_degree"], ".2%"),
        number_cell(signals["forgetting_from_best"], ".2%"),
        number_cell(signals["forgetting_from_start"], ".2%"),
        number_cell(after, ".4f"),
        f"{after - before:+.4f}",
    )


def simulation_text(simulation: Simulation, *, domain_set: DomainSet) -> str:
    """Return a simulation: weights over updates, the state at the end, warnings."""
    last = simulation.decisions[-1]
    ends = [
        (
            name,
            number_cell(last.losses[name]["mean"], ".4f"),
            number_cell(last.signals[name]["learnable_potential"], ".4f"),
            number_cell(last.signals[name]["forgetting_from_start"], ".2%"),
            number_cell(last.weights_after[name], ".4f"),
            "-" if simulation.epochs_K is None else f"{simulation.epochs_K[domain_set.id_of(name)]:.2f}",
        )
        for name in domain_set
    ]
    lines = [
        "Weights decided after each step:",
        weights_table(simulation.decisions, domain_set=domain_set),
        "",
        "At the end:",
        text_table(("domain", "loss", "potential", "over start", "weight", "epochs"), ends),
        "",
        *(f"note: {warning}" for warning in simulation.warnings),
    ]
    return "\n".join(lines).rstrip()


def weights_table(decisions: Sequence[Decision], *, domain_set: DomainSet) -> str:
    """Return the weights of all domains over updates."""
    rows = [
        (
            str(decision.decided_at_step),
            *(f"{decision.weights_after[name]:.4f}" for name in domain_set),
            f"{effective_num_domains(decision.weights_K(domain_set)):.2f}",
            str(len(decision.acted) or ""),
        )
        for decision in _thinned(decisions)
    ]
    return text_table(("step", *domain_set, "effective", "acted"), rows)


def sweep_text(simulations: Mapping[str, Simulation], *, domain_set: DomainSet) -> str:
    """Return one line a setting: where it ends, on the two axes mean loss and worst domain, and its final weights."""
    rows = []
    for label, simulation in simulations.items():
        first, last = simulation.decisions[0], simulation.decisions[-1]
        change = {name: _relative_fall(first, last, name) for name in domain_set}
        measured = [loss["mean"] for loss in last.losses.values() if loss["mean"] is not None]
        known = {name: value for name, value in change.items() if value is not None}
        worst = min(known, key=lambda name: known[name]) if known else None
        rows.append(
            (
                label,
                f"{np.mean(measured):.4f}" if measured else "-",
                "-" if worst is None else f"{known[worst]:+.2%} ({worst})",
                f"{effective_num_domains(last.weights_K(domain_set)):.2f}",
                *(f"{last.weights_after[name]:.3f}" for name in domain_set),
                str(len(simulation.warnings)),
            )
        )
    return text_table(("setting", "mean loss", "worst domain", "effective", *domain_set, "notes"), rows)


def replay_text(recorded: Sequence[Decision], replayed: Sequence[Decision], *, domain_set: DomainSet) -> str:
    """Return how replayed decisions compare with the recorded ones."""
    difference = first_difference(recorded, replayed)
    if difference is None:
        return f"All {len(recorded)} decisions are the recorded ones, digest for digest."
    lines = [
        NOT_COUNTERFACTUAL,
        f"First difference: {difference}.",
        "",
        "Recorded weights:",
        weights_table(recorded, domain_set=domain_set),
        "",
        "Replayed weights:",
        weights_table(replayed, domain_set=domain_set),
        "",
        replayed[-1].reason,
    ]
    return "\n".join(lines)


def _thinned(decisions: Sequence[Decision]) -> list[Decision]:
    """Return at most `_MAX_ROWS` decisions, evenly chosen."""
    chosen = np.unique(np.linspace(0, len(decisions) - 1, min(len(decisions), _MAX_ROWS)).round().astype(int))
    return [decisions[index] for index in chosen]


def _relative_fall(first: Decision, last: Decision, name: str) -> float | None:
    """Return (first loss - last loss) / first loss, negative where the domain was forgotten."""
    start, end = first.losses[name]["mean"], last.losses[name]["mean"]
    return None if start is None or end is None else (start - end) / start
