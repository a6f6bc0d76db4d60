"""Say that a recipe's base model is not there, before anything asks the Hub for it.

The one idea: a Hub name is `owner/name`; whatever cannot be one is a folder, and a missing one is most often an export.
"""

from __future__ import annotations

from pathlib import Path

from versatune_ds.config import ModelConfig


def check_saved_model(model: ModelConfig) -> None:
    """Raise ValueError if `model.name_or_path` can only be a folder, and there is none; a Hub name is `owner/name`."""
    name = model.name_or_path
    if name is None or Path(name).is_dir():
        return
    path = Path(name)
    if path.is_absolute() or name.startswith((".", "~")) or len(path.parts) > 2:
        run = path.parent if path.name == "export" else "RUN"
        raise ValueError(
            f"model.name_or_path: {name}: no such folder; `versatune export {run}` writes a run's model, by default to "
            "RUN/export; a model of the Hub is named owner/name"
        )
