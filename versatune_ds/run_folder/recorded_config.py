"""Read the resolved config of a run from its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from versatune_ds.config import RunConfig, load_config
from versatune_ds.run_folder.names import CONFIG_FILE


def recorded_config(run_dir: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return a run's resolved config with overrides; raise ValueError if the folder is not a run's."""
    if not (run_dir / CONFIG_FILE).is_file():
        raise ValueError(f"{run_dir}: no {CONFIG_FILE}; expected the folder of a run (runs/NAME)")
    return load_config(run_dir / CONFIG_FILE, overrides)
