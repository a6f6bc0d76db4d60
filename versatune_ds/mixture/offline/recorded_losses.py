"""Read recorded losses: plain JSON lines, or the decisions of a run. Either way a line becomes a `Measurement`.

Shape legend: **K** domains.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from versatune_ds.domains import DomainSet, by_domain_name, nearest_name
from versatune_ds.mixture.decision import Decision
from versatune_ds.mixture.measurement import Measurement
from versatune_ds.mixture.policies.signals import from_list
from versatune_ds.run_folder.json_lines import JsonLine, complete_lines, json_lines
from versatune_ds.run_folder.names import DECISIONS_FILE

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LossRecord:
    """One recorded measurement."""

    update: int
    """Number of the update; 0 is the measurement before training."""
    step: int
    """Optimizer steps done."""
    measurement: Measurement


def read_decisions(path: Path) -> list[Decision]:
    """Return the decisions of a decisions.jsonl, each with its digest verified.

    Raises:
        ValueError: If there is no such file, or no decision in it.
        RuntimeError: If a line is not a decision or was changed; the message has file and line. An incomplete last
            line is skipped and logged.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give the folder of a run that has decided")
    decisions = []
    for line in complete_lines(path, when_damaged=_refuse_damaged):
        try:
            decisions.append(Decision.from_json(line.text))
            decisions[-1].verify()
        except (RuntimeError, TypeError, ValueError) as error:
            raise RuntimeError(f"{path}:{line.number}: {error}") from None
    if not decisions:
        raise ValueError(f"{path}: no decision yet")
    return decisions


def recorded_decisions(run_dir: Path) -> list[Decision]:
    """Return a run's decisions, their digests verified.

    Raises:
        ValueError: If there is none yet, or a line was changed; the message has file and line.
    """
    try:
        return read_decisions(run_dir / DECISIONS_FILE)
    except RuntimeError as error:  # the record of a run is a file in the user's hands
        raise ValueError(str(error)) from None


def _refuse_damaged(problem: str) -> None:
    """Raise RuntimeError for a damaged line in the middle of a file: what follows depends on it."""
    raise RuntimeError(f"{problem}; copy the file back from a backup, or resume the run from a checkpoint before it")


def measurement_of(decision: Decision, *, domain_set: DomainSet) -> Measurement:
    """Return exactly the measurement that a decision was made on."""
    losses, signals = decision.losses, decision.signals

    def column(values: Mapping[str, Mapping[str, Any]], key: str) -> np.ndarray:
        return from_list([values[name][key] for name in domain_set])

    return Measurement(
        loss_K=column(losses, "mean"),
        loss_stderr_K=column(losses, "stderr"),
        num_loss_tokens_K=column(losses, "num_loss_tokens").astype(np.int64),
        change_stderr_K=column(signals, "change_stderr"),
        change_from_best_stderr_K=column(signals, "change_from_best_stderr"),
        change_from_start_stderr_K=column(signals, "change_from_start_stderr"),
    )


def read_losses(path: Path, *, domain_set: DomainSet) -> list[LossRecord]:
    """Return the measurements of a file with one JSON object a line: {update, step, losses {domain: nats}}.

    A loss may be null (the domain was absent) or a mapping with `mean`, as in decisions.jsonl, which is read too.

    Raises:
        ValueError: If the file is missing, empty, or a line is wrong; the message has file and line.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected JSON lines with update, step and losses")
    lines = list(json_lines(path))
    if lines and _is_cut_decision(lines[-1]):
        logger.warning("%s:%d: the last line is skipped: %s", path, lines[-1].number, lines[-1].problem)
        lines.pop()
    records = list(_records(lines, what=str(path), domain_set=domain_set))
    if not records:
        raise ValueError(f"{path}: no line; expected JSON lines with update, step and losses")
    return records


def _is_cut_decision(line: JsonLine) -> bool:
    """Return whether a line was cut by a kill or a power cut, as opposed to a mistake in a file written by hand."""
    return line.value is None and ("\0" in line.text or '"decided_at_step"' in line.text)


def _records(lines: Iterable[JsonLine], *, what: str, domain_set: DomainSet) -> Iterable[LossRecord]:
    """Yield the record of each line, checking that steps rise."""
    previous_step = -1
    for line in lines:
        record = _record(line.text, what=f"{what}:{line.number}", domain_set=domain_set)
        if record.step <= previous_step:
            raise ValueError(f"{what}:{line.number}: step {record.step} after step {previous_step}; steps must rise")
        previous_step = record.step
        yield record


def _record(line: str, *, what: str, domain_set: DomainSet) -> LossRecord:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{what}: not valid JSON: {error.msg}") from None
    if not isinstance(values, dict) or not isinstance(values.get("losses"), dict):
        raise ValueError(f"{what}: expected a mapping with update, step and losses {{domain: nats}}")
    step = values.get("step", values.get("decided_at_step"))
    update = values.get("update")
    for key, value in (("step", step), ("update", update)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{what}: {key}: expected a whole number of at least 0, got {value!r}")
    if "decided_at_step" in values and "signals" in values:
        domain_set.from_dict(dict.fromkeys(values["losses"], 0.0), what=f"{what}: losses")
        try:
            measurement = measurement_of(Decision.from_dict(values), domain_set=domain_set)
        except (RuntimeError, KeyError, TypeError) as error:
            raise ValueError(f"{what}: not a complete decision ({error})") from None
        return LossRecord(update=update, step=step, measurement=measurement)
    loss_K = _losses(values["losses"], what=what, domain_set=domain_set)
    return LossRecord(update=update, step=step, measurement=Measurement.of_means(loss_K))


def _losses(values: Mapping[str, Any], *, what: str, domain_set: DomainSet) -> np.ndarray:
    """Return a line's losses [K], NaN for an absent domain."""
    loss_K = np.full(len(domain_set), np.nan)
    for name, value in by_domain_name(values, what=f"{what}: losses").items():
        if name not in domain_set.names:
            raise ValueError(f"{what}: losses: unknown domain {name!r}; {nearest_name(name, domain_set.names)}")
        mean = value.get("mean") if isinstance(value, Mapping) else value
        if isinstance(mean, bool) or not isinstance(mean, int | float | None):
            raise ValueError(f"{what}: losses.{name}: expected nats per loss token or null, got {value!r}")
        loss_K[domain_set.id_of(name)] = np.nan if mean is None else mean
    return loss_K
