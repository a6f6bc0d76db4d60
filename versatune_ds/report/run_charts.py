"""Make the charts of a run: mixture, losses, signals, data, speed.

A chart that would have no recorded value is omitted, and the page says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from versatune_ds.mixture.policies import DEFAULT
from versatune_ds.report.charts import Chart, Line
from versatune_ds.report.scales import Values, axis_for
from versatune_ds.report.series import (
    RunSeries,
    held_out_losses,
    loss_above_reference,
    number_of,
    reference_loss,
    requested_weights,
    training_losses,
)

_FORGETTING = (
    ("forgetting_degree", "against the measurement before"),
    ("forgetting_from_best", "against the domain's best loss"),
    ("forgetting_from_start", "against the loss before training"),
)
_TRAINING = (
    ("train/loss", "Training loss", "loss", "nats per loss token, mean of the steps since the last point"),
    ("perf/tokens_per_second", "Throughput", "count", "tokens per second, all processes"),
    ("perf/step_seconds", "Step time", "seconds", "seconds per optimizer step"),
    ("perf/data_seconds", "Waiting for data", "seconds", "seconds per optimizer step"),
    ("train/grad_norm", "Gradient norm", "loss", "before clipping"),
    ("train/learning_rate", "Learning rate", "rate", ""),
    ("task/choices/accuracy", "Multiple choice", "share", "right answers, mean of the domains (validation.tasks)"),
    ("task/exact/accuracy", "Written answers", "share", "right answers, mean of the domains (validation.tasks)"),
)


@dataclass(frozen=True, kw_only=True)
class RunCharts:
    """The charts of one run, each made once; a list is empty, or a chart None, where there is nothing to draw.

    Attributes:
        series: The run.
        prefix: Start of every chart's key, so that several runs can share a page.
        slots: Number of each domain, the same for all runs of the page.
        x_end: Right end of every chart's axis of steps, the same for all runs of the page.
    """

    series: RunSeries
    prefix: str
    slots: Mapping[str, int]
    x_end: int

    def __iter__(self) -> Iterator[Chart]:
        """Yield all charts."""
        single = (self.weights, self.moves, self.served, self.above_reference, self.potential, self.epochs)
        yield from (chart for chart in single if chart is not None)
        yield from (*self.losses, *self.forgetting, *self.training)

    @cached_property
    def weights(self) -> Chart | None:
        """Return the requested mixture."""
        steps, weights_by_name = requested_weights(self.series)
        note = "What the controller asked for, from the step at which each decision took effect."
        lines = self._lines(weights_by_name)
        return self._chart("weights", "Requested mixture", "weight", steps, lines, note=note, is_stacked=True)

    @cached_property
    def moves(self) -> Chart | None:
        """Return how far each weight has moved since the start."""
        steps, weights_by_name = requested_weights(self.series)
        moved = {
            name: [None if weight is None or weights[0] is None else weight - weights[0] for weight in weights]
            for name, weights in weights_by_name.items()
        }
        note = "Each domain's weight minus its weight at the start: above 0 it gained."
        lines = self._lines(moved)
        return self._chart("moves", "Weights against their start", "change", steps, lines, note=note, is_step=True)

    @cached_property
    def served(self) -> Chart | None:
        """Return each domain's share of the tokens served between log lines."""
        steps, counts = self._by_step("num_tokens")
        lines = self._lines(served_shares(counts, steps))
        note = "What training received: each domain's share of the tokens between two log lines."
        unit = self.series.setting("mixture.weight_unit")
        if unit not in (None, "tokens"):
            note += f" The weights above are shares of {unit}, so the two may differ."
        return self._chart("served", "Served mixture", "weight", [0, *steps], lines, note=note, is_stacked=True)

    @cached_property
    def losses(self) -> list[Chart]:
        """Return one panel a domain, all on the same axis: loss with standard errors, and the reference."""
        panels = {name: self._loss_lines(name) for name in self.series.domain_names}
        values = [value for _, lines in panels.values() for line in lines for value in line.known]
        axis = axis_for(values, is_log=bool(values) and max(values) > 3 * min(values))
        charts = [
            self._chart(f"loss-{self.slots[name]}", name, "loss", steps, lines, height=120, y_axis=axis)
            for name, (steps, lines) in panels.items()
        ]
        return [chart for chart in charts if chart is not None]

    def _loss_lines(self, name: str) -> tuple[list[int], list[Line]]:
        """Return a domain's steps, and its losses with errors and its reference.

        Training losses, where decisions used them, are a line of their own beside the few held-out measurements.
        """
        slot = self.slots[name]
        held_out, trained = held_out_losses(self.series, name), training_losses(self.series, name)
        steps = sorted({*held_out.values, *trained.values})
        drawn = [("loss", held_out, False)]
        if trained.values:
            drawn = [("held-out loss", held_out, True), ("training loss that steered", trained, False)]
        lines = [
            Line(
                name=words,
                slot=slot,
                is_sparse=is_sparse,
                values=[losses.values.get(step) for step in steps],
                errors=[losses.errors.get(step) for step in steps],
            )
            for words, losses, is_sparse in drawn
        ]
        reference = reference_loss(self.series, name)
        if reference is not None and steps:
            lines.append(Line(name="reference", values=[reference] * len(steps), slot=slot, is_reference=True))
        return steps, lines

    @cached_property
    def potential(self) -> Chart | None:
        """Return the learnable potential."""
        note = "The share of a domain's loss that lies above its reference: (loss - reference) / loss, at least 0."
        return self._signal("learnable_potential", "Learnable potential", "weight", note=note)

    @cached_property
    def forgetting(self) -> list[Chart]:
        """Return the forgetting degrees."""
        charts = [self._signal(key, f"Forgetting {words}", "share") for key, words in _FORGETTING]
        return [chart for chart in charts if chart is not None]

    @cached_property
    def above_reference(self) -> Chart | None:
        """Return each loss minus its reference, at least 0."""
        note = f"In nats per loss token, at least 0: what policy {DEFAULT.name} follows by default."
        return self._by_decision("above", "Loss above its reference", "loss", loss_above_reference, note=note)

    def _signal(self, key: str, title: str, kind: str, *, note: str = "") -> Chart | None:
        """Return one signal of the decisions."""
        return self._by_decision(key, title, kind, lambda d, name: number_of(d, "signals", name, key), note=note)

    def _by_decision(
        self, key: str, title: str, kind: str, value: Callable[[Mapping[str, Any], str], float | None], *, note: str
    ) -> Chart | None:
        """Return a chart of one number of each domain at every decision."""
        decisions = self.series.decisions
        steps = [decision["decided_at_step"] for decision in decisions]
        values = {name: [value(decision, name) for decision in decisions] for name in self.series.domain_names}
        return self._chart(key, title, kind, steps, self._lines(values), note=note, height=200)

    @cached_property
    def epochs(self) -> Chart | None:
        """Return the passes over each domain's data."""
        steps, counts = self._by_step("epochs")
        if not steps:
            return None
        values = {name: [0.0, *(by_step.get(step) for step in steps)] for name, by_step in counts.items()}
        note = "How often each domain's examples have been seen."
        return self._chart("epochs", "Epochs consumed", "epochs", [0, *steps], self._lines(values), note=note)

    @cached_property
    def training(self) -> list[Chart]:
        """Return small charts of single metrics, such as throughput."""
        charts = []
        for metric, title, kind, note in _TRAINING:
            points = self.series.of(metric)
            lines = self._lines({title: [value for _, value in points]})
            steps = [step for step, _ in points]
            charts.append(self._chart(metric.replace("/", "-"), title, kind, steps, lines, note=note, height=110))
        return [chart for chart in charts if chart is not None]

    def _by_step(self, metric: str) -> tuple[list[int], dict[str, dict[int, float]]]:
        """Return the steps at which a metric of any domain is recorded, and {domain: {step: value}}."""
        values = {name: dict(self.series.of(f"domain/{name}/{metric}")) for name in self.series.domain_names}
        return sorted({step for by_step in values.values() for step in by_step}), values

    def _lines(self, values: Mapping[str, Values]) -> list[Line]:
        """Return one line a name: a domain, or the title of a chart with one line."""
        return [Line(name=name, values=list(v), slot=self.slots.get(name, 0)) for name, v in values.items()]

    def _chart(
        self, key: str, title: str, kind: str, steps: Sequence[int], lines: Sequence[Line], **options: Any
    ) -> Chart | None:
        """Return a chart, None where no value is known."""
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
