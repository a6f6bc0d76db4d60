"""Compute the standard error of a held-out loss's change since the start.

Both losses are measured on the same examples, so the error of their difference, paired by example, is far smaller than
those of the losses. Every verdict of a report uses this error, so that no two contradict each other.
"""

from __future__ import annotations

import math

from versatune_ds.report.series import RunSeries, held_out_losses, number_of, signal_of

NOISE_ERRORS = 2.0
"""Standard errors within which a difference may be chance."""


def error_of_change(series: RunSeries, name: str) -> float | None:
    """Return the standard error of a domain's change since the start, paired by example, in nats per loss token.

    It is that of the last decision. Where none records it, it is that of two independent losses; None where their
    errors are unknown too.
    """
    for decision in reversed(series.decisions):
        error = number_of(decision, "signals", name, "change_from_start_stderr")
        if error is not None and signal_of(decision) == "validation":
            return error
    losses = held_out_losses(series, name)
    errors = [losses.errors.get(step) for step in (min(losses.values), max(losses.values))] if losses.values else [None]
    return None if None in errors else math.hypot(*errors)
