"""Read the weights that a run ended with."""

from __future__ import annotations

from pathlib import Path

from versatune_ds.report.series import read_series, requested_weights


def last_weights(run_dir: Path) -> dict[str, float]:
    """Return a run's last weights by domain; a domain without one, in a run that never decided, is left out."""
    _, weights = requested_weights(read_series(run_dir))
    return {name: values[-1] for name, values in weights.items() if values[-1] is not None}
