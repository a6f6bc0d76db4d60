"""Make the charts of a run: mixture, losses, signals, data, speed.

A chart that would have no recorded value is omitted, and the page says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from versatune_ds.mixture.policies import DEFAULT
from versatune_ds.report.charts import Chart, Line
from versatune_ds.report.losses import (
    loss_errors,
    measured_losses,
    reference_loss,
    training_errors,
    training_losses,
)
from versatune_ds.report.scales import Values, axis_for
from versatune_ds.report.series import (
    RunSeries,
    loss_above_reference,
    number_or_none,
    of_domain,
    requested_weights,
)

_FORGETTING = (
    ("forgetting_degree", "against the measurement before"),
    ("forgetting_from_best", "against the domain's best loss"),
    ("forgetting_from_start", "against the loss before training"),
)
_POTENTIAL_NOTE = "The share of a domain's loss that lies above its reference: (loss - reference) / loss, at least 0."
_TRAINING = (
    ("train/loss", "Training loss", "loss", "nats per loss token, mean of the steps since the last point"),
    ("perf/tokens_per_second", "Throughput", "count", "tokens per second, all processes"),
    ("perf/step_seconds", "Step time", "seconds", "seconds per optimizer step"),
    ("perf/data_seconds", "Waiting for data", "seconds", "seconds per optimizer step"),
    ("train/grad_norm", "Gradient norm", "loss", "before clipping"),
    ("train/learning_rate", "Learning rate", "rate", ""),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCharts:
    """The charts of one run; a list is empty, or a chart None, where there is nothing to draw."""

    weights: Chart | None
    moves: Chart | None
    served: Chart | None
    losses: list[Chart]
    above_reference: Chart | None
    potential: Chart | None
    forgetting: list[Chart]
    epochs: Chart | None
    training: list[Chart]

    def __iter__(self) -> Iterator[Chart]:
        """Yield all charts."""
        single = (self.weights, self.moves, self.served, self.above_reference, self.potential, self.epochs)
        yield from (chart for chart in single if chart is not None)
        yield from (*self.losses, *self.forgetting, *self.training)


def charts_of(series: RunSeries, *, prefix: str, slots: Mapping[str, int], x_end: int) -> RunCharts:
    """Return a run's charts.

    Args:
        series: The run.
        prefix: Start of every chart's key, so that several runs can share a page.
        slots: Number of each domain, the same for all runs of the page.
        x_end: Right end of every chart's axis of steps, the same for all runs of the page.
    """
    made = _Maker(series=series, prefix=prefix, slots=slots, x_end=x_end)
    return RunCharts(
        weights=made.weights(),
        moves=made.moves(),
        served=made.served(),
        losses=made.losses(),
        above_reference=made.above_reference(),
        potential=made.signal("learnable_potential", title="Learnable potential", note=_POTENTIAL_NOTE),
        forgetting=[c for key, words in _FORGETTING if (c := made.signal(key, title=f"Forgetting {words}", note=""))],
        epochs=made.epochs(),
        training=made.training(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Maker:
    """Make the charts of one run."""

    series: RunSeries
    prefix: str
    slots: Mapping[str, int]
    x_end: int

    def weights(self) -> Chart | None:
        """Return the requested mixture."""
        steps, weights_by_name = requested_weights(self.series)
        note = "What the controller asked for, from the step at which each decision took effect."
        return self._chart("weights", "Requested mixture", "weight", steps, weights_by_name, note=note, is_stacked=True)

    def moves(self) -> Chart | None:
        """Return how far each weight has moved since the start."""
        steps, weights_by_name = requested_weights(self.series)
        moved = {
            name: [None if weight is None or weights[0] is None else weight - weights[0] for weight in weights]
            for name, weights in weights_by_name.items()
        }
        note = "Each domain's weight minus its weight at the start: above 0 it gained."
        return self._chart("moves", "Weights against their start", "change", steps, moved, note=note, is_step=True)

    def served(self) -> Chart | None:
        """Return each domain's share of the tokens served between log lines."""
        counts = {name: dict(self.series.of(f"domain/{name}/num_tokens")) for name in self.series.domain_names}
        steps = sorted({step for by_step in counts.values() for step in by_step})
        shares = served_shares(counts, steps)
        note = "What training received: each domain's share of the tokens between two log lines."
        unit = self.series.setting("mixture.weight_unit")
        if unit not in (None, "tokens"):
            note += f" The weights above are shares of {unit}, so the two may differ."
        return self._chart("served", "Served mixture", "weight", [0, *steps], shares, note=note, is_stacked=True)

    def losses(self) -> list[Chart]:
        """Return one panel a domain, all on the same axis: loss with standard errors, and the reference."""
        # All panels share one axis of values.
        panels = {name: self._loss_lines(name) for name in self.series.domain_names}
        values = [value for _, lines in panels.values() for line in lines for value in line.known]
        axis = axis_for(values, is_log=bool(values) and max(values) > 3 * min(values))
        return [
            Chart(
                key=f"{self.prefix}-loss-{self.slots[name]}",
                title=name,
                kind="loss",
                steps=steps,
                lines=lines,
                last_step=self.series.last_step,
                x_end=self.x_end,
                height=120,
                y_axis=axis,
            ).thinned()
            for name, (steps, lines) in panels.items()
            if steps
        ]

    def _loss_lines(self, name: str) -> tuple[list[int], list[Line]]:
        """Return a domain's steps, and its losses with errors and its reference.

        Training losses, where decisions used them, are a line of their own beside the few held-out measurements.
        """
        slot = self.slots[name]
        held_out, trained = measured_losses(self.series, name), training_losses(self.series, name)
        steps = sorted({*held_out, *trained})
        drawn = [("held-out loss" if trained else "loss", held_out, loss_errors(self.series, name), bool(trained))]
        if trained:
            drawn.append(("training loss that steered", trained, training_errors(self.series, name), False))
        lines = [
            Line(name=words, slot=slot, is_sparse=is_sparse, **_at_steps(steps, values=values, errors=errors))
            for words, values, errors, is_sparse in drawn
        ]
        reference = reference_loss(self.series, name)
        if reference is not None and steps:
            lines.append(Line(name="reference", values=[reference] * len(steps), slot=slot, is_reference=True))
        return steps, lines

    def signal(self, key: str, *, title: str, note: str) -> Chart | None:
        """Return one signal of the decisions."""
        steps = [decision["decided_at_step"] for decision in self.series.decisions]
        values = {
            name: [number_or_none(of_domain(d, "signals", name).get(key)) for d in self.series.decisions]
            for name in self.series.domain_names
        }
        kind = "weight" if key == "learnable_potential" else "share"
        return self._chart(key, title, kind, steps, values, note=note, height=200)

    def above_reference(self) -> Chart | None:
        """Return each loss minus its reference, at least 0."""
        decisions, names = self.series.decisions, self.series.domain_names
        steps = [decision["decided_at_step"] for decision in decisions]
        values = {name: [loss_above_reference(decision, name) for decision in decisions] for name in names}
        note = f"In nats per loss token, at least 0: what policy {DEFAULT.name} follows by default."
        return self._chart("above", "Loss above its reference", "loss", steps, values, note=note, height=200)

    def epochs(self) -> Chart | None:
        """Return the passes over each domain's data."""
        counts = {name: dict(self.series.of(f"domain/{name}/epochs")) for name in self.series.domain_names}
        steps = sorted({step for by_step in counts.values() for step in by_step})
        if not steps:
            return None
        values = {name: [0.0, *(by_step.get(step) for step in steps)] for name, by_step in counts.items()}
        note = "How often each domain's examples have been seen."
        return self._chart("epochs", "Epochs consumed", "epochs", [0, *steps], values, note=note)

    def training(self) -> list[Chart]:
        """Return small charts of single metrics, such as throughput."""
        made = []
        for metric, title, kind, note in _TRAINING:
            points = self.series.of(metric)
            if points:
                steps, values = zip(*points, strict=True)
                key = metric.replace("/", "-")
                chart = self._chart(key, title, kind, steps, {title: values}, note=note, height=110)
                if chart is not None:
                    made.append(chart)
        return made

    def _chart(
        self, key: str, title: str, kind: str, steps: Sequence[int], values: Mapping[str, Values], **options: Any
    ) -> Chart | None:
        """Return a chart with one line a name, None where no value is known."""
        lines = [Line(name=name, values=list(v), slot=self.slots.get(name, 0)) for name, v in values.items()]
        if len(steps) == 0 or not any(line.known for line in lines):
            return None
        key = f"{self.prefix}-{key}"
        ends = {"last_step": self.series.last_step, "x_end": self.x_end}
        return Chart(key=key, title=title, kind=kind, steps=steps, lines=lines, **ends, **options).thinned()


def served_shares(counts: Mapping[str, Mapping[int, float]], steps: Sequence[int]) -> dict[str, list[float | None]]:
    """Return each domain's share of the tokens served since the log line before; one more value than steps.

    The value at position i applies from step i to step i + 1 of [0, *steps]; the last is repeated to end the area.

    Args:
        counts: Domain to {step: tokens served since the run began}.
        steps: Ascending.
    """
    before = dict.fromkeys(counts, 0.0)
    rows: list[dict[str, float]] = []
    for step in steps:
        now = {name: by_step.get(step, before[name]) for name, by_step in counts.items()}
        gained = {name: max(now[name] - before[name], 0.0) for name in counts}
        total = sum(gained.values())
        rows.append({name: value / total for name, value in gained.items()} if total else {})
        before = now
    return {name: [row.get(name) for row in [*rows, *rows[-1:]]] for name in counts}


def _at_steps(
    steps: Sequence[int], *, values: Mapping[int, float], errors: Mapping[int, float]
) -> dict[str, list[float | None]]:
    """Return a line's values and errors at each of the chart's steps, None where there is none."""
    return {"values": [values.get(step) for step in steps], "errors": [errors.get(step) for step in steps]}
