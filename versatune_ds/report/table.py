"""Summarise a run as a text table: losses and weights of each domain before and after, shares requested and realised.

"before" is the measurement at step 0, "after" the last one recorded, a dash while there is no other. A loss that ended
higher by more than its noise is marked.
"""

from __future__ import annotations

from versatune_ds.report.losses import rise_beyond_noise
from versatune_ds.report.series import RunSeries, requested_weights
from versatune_ds.text_table import text_table

_HEADER = (
    "\ndomain", "loss\nbefore", "loss\nafter", "weight\nbefore", "weight\nafter", "share\nrequested", "share\nrealised",
    "\ntokens",
)  # fmt: skip


def summary_table(series: RunSeries) -> str:
    """Return the table as aligned text, within 80 columns for names up to 14 characters."""
    table = text_table(_HEADER, [_domain_row(series, name) for name in series.domain_names])
    rises = {name: rise_beyond_noise(series, name) for name in series.domain_names}
    worse = ", ".join(f"{name} (+{rise:.3f})" for name, rise in rises.items() if rise > 0)
    return f"{table}\n* worse than before training: {worse}" if worse else table


def _domain_row(series: RunSeries, name: str) -> tuple[str, ...]:
    """Return a domain's cells."""
    losses = series.of(f"domain/{name}/loss")
    _, requested = requested_weights(series)
    weight_before = requested[name][0]
    weight_after = series.last(f"domain/{name}/weight")
    num_tokens = series.last(f"domain/{name}/num_tokens")
    return (
        name,
        _number(losses[0][1] if losses else None),
        _number(losses[-1][1] if len(losses) > 1 else None) + "*" * (rise_beyond_noise(series, name) > 0),
        _number(weight_before),
        _number(weight_after),
        _number(series.last(f"domain/{name}/requested_share"), digits=4),
        _number(series.last(f"domain/{name}/realised_share"), digits=4),
        "-" if num_tokens is None else f"{num_tokens:,.0f}",
    )


def _number(value: float | None, *, digits: int = 3) -> str:
    """Return a number with fixed digits, a dash for none."""
    return "-" if value is None else f"{value:.{digits}f}"
