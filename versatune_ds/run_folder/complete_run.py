"""Recognise a complete run from its folder, in a fraction of a second: without torch, data or a process of the run.

Only a run that is started again exactly as it was is recognised. Whatever else differs (a key that training reads, a
file of the checkpoint) is left to the start of the run, which compares and checks everything.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from versatune_ds.config import RunConfig
from versatune_ds.config.load import flatten
from versatune_ds.run_folder.names import (
    CONFIG_FILE,
    EARLY_STOP_FILE,
    MANIFEST_FILE,
    STATE_FILE,
    complete_checkpoints,
    step_of_checkpoint,
)
from versatune_ds.run_folder.recorded_config import recorded_config

_UNREAD = ("monitor", "slurm", "detect", "reference", "resume")
"""Sections that change nothing of a run that is complete."""
_LENGTH = ("train.steps", "train.epochs", "train.epochs_of", "train.steps_from")


def complete_line(config: RunConfig) -> str | None:
    """Return that a run is complete, and what trains on; None where that is not certain.

    Args:
        config: The recipe, as it was given.
    """
    try:
        step = _complete_step(config)
        reason = _early_reason(config.run_dir)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a file that is missing or damaged is reported by the start of the run
    if step is None:
        return None
    what_next = "a larger train.steps trains on, --fresh starts over"
    return f"{config.run_dir} is complete after step {step}{reason}; {what_next}"


def _early_reason(run_dir: Path) -> str:
    """Return why a run ended before its last step, in brackets; empty for one that did not."""
    early = run_dir / EARLY_STOP_FILE
    return f" ({json.loads(early.read_text(encoding='utf-8'))['reason']})" if early.is_file() else ""


def _complete_step(config: RunConfig) -> int | None:
    """Return the last step of a run that is complete with this config; None for any other."""
    if not (config.run_dir / CONFIG_FILE).is_file() or not _is_same(recorded_config(config.run_dir), config):
        return None
    newest = next(iter(complete_checkpoints(config.run_dir)), None)
    if newest is None or not _has_listed_files(newest):
        return None
    state = json.loads((newest / STATE_FILE).read_text(encoding="utf-8"))
    return step_of_checkpoint(newest.name) if state["is_complete"] else None


def _is_same(recorded: RunConfig, config: RunConfig) -> bool:
    """Return whether training reads the same settings.

    Epochs are those that the recorded steps were computed from. A default interval between updates is the one that the
    run began with: it depends on the number of steps, which epochs do not give, and a run that gets more keeps it.
    """
    ignored: tuple[str, ...] = tuple(f"{section}." for section in _UNREAD)
    if "update_every" not in config.mixture.model_fields_set:
        ignored += ("mixture.update_every",)
    if config.train.epochs is not None and recorded.train.steps_from == config.train.length_in_epochs:
        ignored += _LENGTH

    def read(one: RunConfig) -> dict[str, Any]:
        values = flatten(one.model_dump(mode="json"))
        return {key: value for key, value in values.items() if not key.startswith(ignored)}

    return read(recorded) == read(config)


def _has_listed_files(checkpoint: Path) -> bool:
    """Return whether a checkpoint's files have the sizes that its MANIFEST lists; they are not read."""
    listed = json.loads((checkpoint / MANIFEST_FILE).read_text(encoding="utf-8"))["files"]
    return all((checkpoint / name).stat().st_size == size for name, (size, _) in listed.items())
