"""Read a run's folder into series of numbers.

Tables, plots and pages are made from these files alone, so they work on a run that is finished, running or killed: a
missing file counts as empty, and an incomplete line is skipped.

Losses of held-out examples and of training batches are separate series. Under `mixture.signal: train` the decisions
record those of training batches, and held-out examples are measured only at the start and at the end.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from versatune_ds.json_file import is_finite_number
from versatune_ds.mixture.decision import above_reference
from versatune_ds.run_folder.json_lines import json_lines
from versatune_ds.run_folder.names import (
    CONFIG_FILE,
    DECISIONS_FILE,
    EARLY_STOP_FILE,
    ENVIRONMENT_FILE,
    EVALUATION_FILE,
    EXPERTS_FILE,
    METRICS_FILE,
    PLAN_FILE,
    PRIOR_FILE,
    REFERENCE_FILE,
)

logger = logging.getLogger(__name__)

_FILES = (CONFIG_FILE, ENVIRONMENT_FILE, METRICS_FILE, DECISIONS_FILE)
"""Files of which a run's folder has at least one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSeries:
    """What a run recorded, in the order of its steps; what it did not record is empty."""

    run_dir: Path
    domain_names: tuple[str, ...]
    metrics: tuple[dict[str, Any], ...]
    decisions: tuple[dict[str, Any], ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    prior: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    reference: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    early_stop: Mapping[str, Any] = field(default_factory=dict)
    """Content of early_stop.json, where `train.early_stopping` ended the run."""
    experts: Mapping[str, Any] = field(default_factory=dict)
    """Content of experts.json, of a mixture of experts."""

    def of(self, name: str) -> list[tuple[int, float]]:
        """Return the (step, value) pairs of one metric; missing values and those that are not finite are omitted."""
        return [(line["step"], line[name]) for line in self.metrics if is_finite_number(line.get(name))]

    def last(self, name: str) -> float | None:
        """Return a metric's last value, None where it was never recorded."""
        values = self.of(name)
        return values[-1][1] if values else None

    def setting(self, dotted_key: str) -> Any:
        """Return a key of the resolved config, None where it is not recorded."""
        value: Any = self.config
        for key in dotted_key.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.setting("run.name") or self.run_dir.resolve().name)

    @property
    def measured_step(self) -> int | None:
        """Return the step of the last validation, None before the first."""
        steps = [step for name in self.domain_names for step, _ in self.of(f"domain/{name}/loss")]
        return max(steps, default=None)

    @property
    def last_step(self) -> int:
        """The last step recorded, 0 before the first."""
        decided = self.decisions[-1]["decided_at_step"] if self.decisions else 0
        return max([decided, *(line["step"] for line in self.metrics[-1:])])

    @property
    def updates(self) -> tuple[dict[str, Any], ...]:
        """The decisions that may move weights; the one before training counts only if it did."""
        return tuple(d for d in self.decisions if d.get("update") or d["weights_after"] != d["weights_before"])

    @property
    def num_steps(self) -> int | None:
        """The steps the recipe asks for, None where the config is not recorded."""
        steps = self.setting("train.steps")
        return steps if isinstance(steps, int) else None


def read_series(run_dir: Path) -> RunSeries:
    """Read the files of a run's folder.

    Raises:
        ValueError: If the folder is not a run's.
    """
    if not any((run_dir / name).is_file() for name in _FILES):
        raise ValueError(
            f"{run_dir}: no {', '.join(_FILES[:-1])} or {_FILES[-1]}; expected the folder of a run (runs/NAME)"
        )
    decisions = tuple(line for line in read_json_lines(run_dir / DECISIONS_FILE) if _is_decision(line))
    metrics = tuple(line for line in read_json_lines(run_dir / METRICS_FILE) if is_finite_number(line.get("step")))
    prior = _read_mapping(run_dir / PRIOR_FILE)
    return RunSeries(
        run_dir=run_dir,
        domain_names=_domain_names(decisions, metrics, prior),
        metrics=metrics,
        decisions=decisions,
        config=_read_mapping(run_dir / CONFIG_FILE),
        environment=_read_mapping(run_dir / ENVIRONMENT_FILE),
        prior=prior,
        plan=_read_mapping(run_dir / PLAN_FILE),
        reference=_read_mapping(run_dir / REFERENCE_FILE),
        evaluation=_read_mapping(run_dir / EVALUATION_FILE),
        early_stop=_read_mapping(run_dir / EARLY_STOP_FILE),
        experts=_read_mapping(run_dir / EXPERTS_FILE),
    )


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON-lines file, none for a missing one; incomplete lines are skipped.

    Skipped lines are logged, except for the last one, which may just be being written.
    """
    for line in json_lines(path):
        if line.value is not None:
            yield line.value
        elif not line.is_last or "\0" in line.text:
            logger.warning("%s:%d is skipped: %s", path, line.number, line.problem)


def _is_decision(line: Mapping[str, Any]) -> bool:
    weights = (line.get("weights_before"), line.get("weights_after"))
    return all(isinstance(w, Mapping) and w for w in weights) and is_finite_number(line.get("decided_at_step"))


def _domain_names(
    decisions: tuple[dict[str, Any], ...], metrics: tuple[dict[str, Any], ...], prior: Mapping[str, Any]
) -> tuple[str, ...]:
    """Return the domains in their order: from the decisions, or before the first one from metrics or the prior."""
    if decisions:
        return tuple(decisions[0]["weights_after"])
    keys = [key for line in metrics for key in line if key.startswith("domain/") and key.count("/") >= 2]
    names = dict.fromkeys(key.removeprefix("domain/").rpartition("/")[0] for key in keys)
    weights = prior.get("weights")
    return tuple(names) or tuple(weights if isinstance(weights, Mapping) else ())


def _read_mapping(path: Path) -> dict[str, Any]:
    """Return a JSON or YAML file's mapping; empty where the file is missing, corrupt, or no mapping."""
    try:
        text = path.read_text(encoding="utf-8")
        value = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) else {}


def requested_weights(series: RunSeries) -> tuple[list[int], dict[str, list[float | None]]]:
    """Return the steps at which the requested mixture changed, and the weights of each domain from there on.

    The weights of step 0 come first (the prior, before the first decision), then every decision in effect by the last
    recorded step. The last weights are repeated at that step, or at step 1 of a run without steps.
    """
    start, last_step = _weights_at_start(series), series.last_step
    points = [(0, start)] + [(effective_step(decision), decision["weights_after"]) for decision in series.updates]
    shown = [(step, weights) for step, weights in points if step <= last_step]
    shown.append((max(last_step, 1), shown[-1][1]))
    weights_by_name = {
        name: [number_or_none(weights.get(name)) for _, weights in shown] for name in series.domain_names
    }
    return [step for step, _ in shown], weights_by_name


def effective_step(decision: Mapping[str, Any]) -> int:
    """Return the step from which a decision's weights are drawn; files of the first versions do not have it."""
    return decision.get("effective_step", decision["decided_at_step"])


def number_of(decision: Mapping[str, Any], part: str, name: str, key: str) -> float | None:
    """Return a number of a domain in the losses or signals of a decision, None where it has none."""
    by_name = decision.get(part)
    entry = by_name.get(name) if isinstance(by_name, Mapping) else None
    return number_or_none(entry.get(key)) if isinstance(entry, Mapping) else None


def loss_above_reference(decision: Mapping[str, Any], name: str) -> float | None:
    """Return how many nats a domain's loss lay above its reference in a decision, at least 0."""
    loss = number_of(decision, "losses", name, "mean")
    return above_reference(loss, number_of(decision, "signals", name, "reference_loss"))


def number_or_none(value: Any) -> float | None:
    """Return a value from a file if it is a finite number, None otherwise."""
    return value if is_finite_number(value) else None


def _weights_at_start(series: RunSeries) -> Mapping[str, Any]:
    """Return the weights of step 0, or an empty mapping."""
    if series.decisions:
        return series.decisions[0]["weights_before"]
    weights = series.prior.get("weights")
    return weights if isinstance(weights, Mapping) else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """A domain's losses by step, and their standard errors where they are recorded."""

    values: dict[int, float]
    errors: dict[int, float]


def held_out_losses(series: RunSeries, name: str) -> Losses:
    """Return a domain's validation losses, from the metrics or else from the decisions."""
    decided = _decided(series, name, is_trained=False)
    return Losses(
        values=decided.values | dict(series.of(f"domain/{name}/loss")),
        errors=decided.errors | dict(series.of(f"domain/{name}/loss_stderr")),
    )


def training_losses(series: RunSeries, name: str) -> Losses:
    """Return the mean losses of a domain's training batches since the last update, under `mixture.signal: train`."""
    return _decided(series, name, is_trained=True)


def _decided(series: RunSeries, name: str, *, is_trained: bool) -> Losses:
    """Return a domain's losses in the decisions, of training batches or of held-out examples."""
    losses = Losses(values={}, errors={})
    for decision in series.decisions:
        if signal_of(decision) != ("train" if is_trained else "validation"):
            continue
        for key, by_step in (("mean", losses.values), ("stderr", losses.errors)):
            number = number_of(decision, "losses", name, key)
            if number is not None:
                by_step[decision["decided_at_step"]] = number
    return losses


def signal_of(decision: Mapping[str, Any]) -> str:
    """Return the `mixture.signal` of a decision: validation, train, or the name of a function of the user's own."""
    inputs = decision.get("inputs")
    return str(inputs.get("signal", "validation")) if isinstance(inputs, Mapping) else "validation"


def reference_loss(series: RunSeries, name: str) -> float | None:
    """Return a domain's reference loss, from the last decision or else from reference.json."""
    if series.decisions:
        if signal_of(series.decisions[-1]) not in ("validation", "train"):
            return None  # in the unit of the user's own signal
        value = number_of(series.decisions[-1], "signals", name, "reference_loss")
        if value is not None:
            return value
    losses = series.reference.get("losses")
    return number_or_none(losses.get(name)) if isinstance(losses, Mapping) else None
