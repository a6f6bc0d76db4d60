"""Sum a run up in one table: per domain, losses and weights before and after, shares requested and realised.

The one idea: "before" is the measurement at step 0, "after" the last one on record, a dash while there is no other.
A loss that ended higher, by more than its noise, is marked.
"""

from __future__ import annotations

from versatune_ds.report.losses import rise_beyond_noise
from versatune_ds.report.series import RunSeries, requested_weights
from versatune_ds.text_width import pad_left, pad_right, width_of

_HEADER = ("domain", "before", "after", "before", "after", "requested", "realised", "tokens")
_GROUPS = ((1, "loss"), (3, "weight"), (5, "share"))
"""First column of a group, and its title above the header."""


def summary_table(series: RunSeries) -> str:
    """Return the table as aligned text, within 80 columns for names up to 14 characters."""
    rows = [_HEADER, *(_domain_row(series, name) for name in series.domain_names)]
    widths = [max(width_of(row[i]) for row in rows) for i in range(len(_HEADER))]
    header, *lines = [_line(row, widths) for row in rows]
    worse = {name: rise for name in series.domain_names if (rise := rise_beyond_noise(series, name)) > 0}
    notes = [f"* worse than before training: {', '.join(f'{n} (+{rise:.3f})' for n, rise in worse.items())}"] * bool(
        worse
    )
    return "\n".join([_group_line(widths), header, "-" * len(header), *lines, *notes])


def _group_line(widths: list[int]) -> str:
    """Return the line of group titles, each above the left edge of its first column."""
    line = ""
    for column, title in _GROUPS:
        line = line.ljust(sum(widths[:column]) + 2 * column) + title
    return line


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    """Return one line: the name to the left, numbers to the right."""
    name, *numbers = (
        pad_right(cell, w) if i == 0 else pad_left(cell, w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
    )
    return "  ".join([name, *numbers])


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
