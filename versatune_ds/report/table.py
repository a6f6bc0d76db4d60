"""Summarise a run as a text table: losses and weights of each domain before and after, shares requested and realised.

"before" is the measurement at step 0, "after" the last one recorded, a dash while there is no other. A loss that ended
higher by more than its noise is marked.
"""

from __future__ import annotations

from versatune_ds.report.losses import rise_beyond_noise
from versatune_ds.report.series import RunSeries, requested_weights
from versatune_ds.text_table import number_cell, text_table

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
    mark = "*" if rise_beyond_noise(series, name) > 0 else ""
    return (
        name,
        number_cell(losses[0][1] if losses else None),
        number_cell(losses[-1][1] if len(losses) > 1 else None) + mark,
        number_cell(requested[name][0]),
        number_cell(series.last(f"domain/{name}/weight")),
        number_cell(series.last(f"domain/{name}/requested_share"), ".4f"),
        number_cell(series.last(f"domain/{name}/realised_share"), ".4f"),
        number_cell(series.last(f"domain/{name}/num_tokens"), ",.0f"),
    )
