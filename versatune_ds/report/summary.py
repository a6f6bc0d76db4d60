"""Summarise a run for the top of the page, and compare several runs.

A run's result is its last recorded validation loss; the other runs are compared with the first one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from versatune_ds.config.load import flatten
from versatune_ds.report.decision_list import change_text
from versatune_ds.report.scales import UNKNOWN, format_value
from versatune_ds.report.series import RunSeries, held_out_losses, reference_loss, requested_weights
from versatune_ds.report.story import mean_of_losses, rise_from_start, times
from versatune_ds.run_folder.names import DECISIONS_FILE, METRICS_FILE

DOMAIN_COLUMNS = (
    "domain", "loss before", "loss after", "reference", "against its start", "weight before", "after", "change",
    "requested share", "realised share", "tokens", "epochs",
)  # fmt: skip


def domain_table(series: RunSeries) -> list[list[str]]:
    """Return one row of texts a domain, in the order of DOMAIN_COLUMNS."""
    _, weights = requested_weights(series)
    return [_domain_row(series, name, weights[name]) for name in series.domain_names]


def _domain_row(series: RunSeries, name: str, weights: Sequence[float | None]) -> list[str]:
    losses = series.of(f"domain/{name}/loss")
    before, after = (losses[0][1], losses[-1][1]) if losses else (None, None)
    change = None if weights[0] is None or weights[-1] is None else weights[-1] - weights[0]
    shares = (series.last(f"domain/{name}/{key}") for key in ("requested_share", "realised_share"))
    return [
        name,
        format_value(before, "loss"),
        format_value(after, "loss"),
        format_value(reference_loss(series, name), "loss"),
        _against_start(series, name),
        format_value(weights[0], "weight"),
        format_value(weights[-1], "weight"),
        change_text(change),
        *(format_value(share, "weight") for share in shares),
        format_value(series.last(f"domain/{name}/num_tokens"), "count"),
        format_value(series.last(f"domain/{name}/epochs"), "epochs"),
    ]


def _against_start(series: RunSeries, name: str) -> str:
    """Describe whether a domain ended below or above its first loss."""
    losses, rise = series.of(f"domain/{name}/loss"), rise_from_start(series, name)
    if len(losses) < 2:
        return UNKNOWN
    if rise > 0:
        return f"forgot {rise:.1%}"
    return f"learned {1 - losses[-1][1] / losses[0][1]:.1%}" if losses[0][1] > 0 else "held"


def facts(series: RunSeries) -> list[tuple[str, str]]:
    """Return the few numbers of a run that a reader looks for first."""
    means = mean_of_losses(series)
    last_tokens = [series.last(f"domain/{name}/num_tokens") for name in series.domain_names]
    known_tokens = [value for value in last_tokens if value is not None]
    seconds = [value for _, value in series.of("perf/step_seconds")]
    waits = [value for _, value in series.of("perf/data_seconds")]
    speeds = sorted(value for _, value in series.of("perf/tokens_per_second"))
    found = [
        ("steps", f"{series.last_step:,} of {series.num_steps:,}" if series.num_steps else f"{series.last_step:,}"),
        ("updates", f"{len(series.updates):,}"),
        ("mean validation loss", f"{means[0]:.3f} → {means[1]:.3f}" if means else None),
        ("tokens", f"{sum(known_tokens):,.0f}" if known_tokens else None),
        ("tokens per second, median", f"{speeds[len(speeds) // 2]:,.0f}" if speeds else None),
        ("waiting for data", f"{sum(waits) / sum(seconds):.2%} of the step" if seconds and sum(seconds) else None),
    ]
    return [(what, text) for what, text in found if text is not None]


def state_of(series: RunSeries, *, now: float) -> str:
    """Describe how far the run is, and when it last wrote; its files cannot show whether it still runs."""
    if "reason" in series.early_stop:
        return f"Complete: {series.early_stop['reason']}."
    if series.num_steps is not None and series.last_step >= series.num_steps:
        return f"Complete: {series.num_steps:,} steps."
    of_all = f" of {series.num_steps:,}" if series.num_steps else ""
    files = [series.run_dir / name for name in (METRICS_FILE, DECISIONS_FILE)]
    written = [path.stat().st_mtime for path in files if path.is_file()]
    if not written:
        return "Nothing has been measured yet."
    minutes = int(max(now - max(written), 0) // 60)
    age = times(minutes, "minute") if minutes < 120 else times(minutes // 60, "hour")
    return f"Not complete: step {series.last_step:,}{of_all}; it last wrote {age} before this page was made."


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run's last loss of a domain as text, with its standard error, empty where unknown."""

    text: str
    error: str
    against_first: str
    """Difference to the first run in words, empty for the first."""
    is_best: bool
    """Whether no other run's is lower."""


def comparison(runs: Sequence[RunSeries], names: Sequence[str]) -> list[tuple[str, list[Cell]]]:
    """Return (domain, one cell a run) for each domain, then for the mean over the domains that all runs have."""
    rows = [(name, [run.last(f"domain/{name}/loss") for run in runs]) for name in names]
    shared = [losses for _, losses in rows if all(loss is not None for loss in losses)]
    means = [sum(column) / len(shared) for column in zip(*shared, strict=True)] if shared else []
    table = [(name, _cells(losses, [_last_error(run, name) for run in runs])) for name, losses in rows]
    return [*table, (f"mean of {len(shared)} domains", _cells(means, [None] * len(means)))] if means else table


def _last_error(run: RunSeries, name: str) -> float | None:
    """Return the standard error of a domain's last validation loss, where it is recorded."""
    losses = run.of(f"domain/{name}/loss")
    return held_out_losses(run, name).errors.get(losses[-1][0]) if losses else None


def _cells(losses: Sequence[float | None], errors: Sequence[float | None]) -> list[Cell]:
    known = [loss for loss in losses if loss is not None]
    best = min(known) if len(known) > 1 and min(known) < max(known) else None
    return [
        Cell(
            text=format_value(loss, "loss"),
            error="" if error is None else f"± {error:.4f}",
            against_first="" if index == 0 else _difference(losses[0], loss),
            is_best=best is not None and loss == best,
        )
        for index, (loss, error) in enumerate(zip(losses, errors, strict=True))
    ]


def _difference(first: float | None, loss: float | None) -> str:
    """Return a loss's difference to the first run's, with a word."""
    if first is None or loss is None:
        return ""
    if first == loss:
        return "the same"
    return f"{abs(loss - first):.4f} {'lower' if loss < first else 'higher'}"


def flat_items(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a mapping's entries as (dotted key, text)."""
    return [
        (key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for key, value in flatten(values).items()
    ]
