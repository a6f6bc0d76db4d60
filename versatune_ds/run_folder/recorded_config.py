"""Read the resolved config of a run from its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from versatune_ds.config import RunConfig, load_config
from versatune_ds.run_folder.names import CONFIG_FILE, ENVIRONMENT_FILE


def recorded_config(run_dir: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return a run's resolved config with overrides; raise ValueError if the folder is not a run's."""
    check_has_config(run_dir)
    return load_config(run_dir / CONFIG_FILE, overrides)


def check_has_config(run_dir: Path) -> None:
    """Raise ValueError if a folder is not a run's."""
    if not (run_dir / CONFIG_FILE).is_file():
        raise ValueError(f"{run_dir}: no {CONFIG_FILE}; expected the folder of a run (runs/NAME)")


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run's."""
    return (folder / CONFIG_FILE).is_file() and (folder / ENVIRONMENT_FILE).is_file()


def check_model_folder(model: Path, *, has_recipe: bool) -> None:
    """Check that there is a folder to evaluate: of a run, or of a model that transformers can load.

    Raises:
        ValueError: If there is no such folder, or it is not a run's and no recipe defines the data.
    """
    if not model.is_dir():
        raise ValueError(f"{model}: no such folder; give a run's, or one that transformers can load")
    if not has_recipe and not is_run(model):
        raise ValueError(f"{model}: not a run's folder, so give a recipe with the data: --recipe FILE")
