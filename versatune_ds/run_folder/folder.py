"""Open a run's folder: make it, or come back to it with a recipe that still fits.

The one idea: the resolved config lies in the folder, so a resumed run can say which keys changed since it began, and
refuse those that would make it another run.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from versatune_ds.config import RunConfig
from versatune_ds.config.load import parse_config
from versatune_ds.distributed import World
from versatune_ds.run_folder.environment import describe_environment
from versatune_ds.run_folder.history import take_over
from versatune_ds.run_folder.links import (
    check_links,
    claim_checkpoints,
    is_empty_folder,
    point_to_new_folder,
)
from versatune_ds.run_folder.names import (
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    ENDINGS_FILE,
    ENVIRONMENT_FILE,
    PRIOR_FILE,
    REFERENCE_FILE,
)

logger = logging.getLogger(__name__)

_FIXED_KEYS = (
    "run.seed",
    "model.name_or_path",
    "model.from_config",
    "model.lora",
    "model.freeze",
    "data.row_tokens",
    "train.steps",
    "train.rows_per_batch",
    "train.precision",
    "train.optimizer",
    "mixture.policy",
    "mixture.prior",
    "mixture.weight_unit",
)
"""Keys, or sections, that make a run what it is; everything else may change between its parts, and is said. Data and
tokenizer are compared by content, when a checkpoint is loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStart:
    """What a run starts from, as its folder keeps it."""

    prior: Mapping[str, Any]
    """Content of prior.json: weights of step 0 by domain, and their origin."""
    reference: Mapping[str, Any] | None = None
    """Content of reference.json; None where no reference losses were given."""
    endings: Mapping[str, Any] = field(default_factory=dict)
    """Content of endings.json, as `end_tokens.endings_of_data` returns it; empty for none."""
    save_parts: Callable[[Path], None] = lambda folder: None
    """Writes the tokenizer and the model's config into the run's folder."""


def check_run_folder(config: RunConfig, *, is_fresh: bool) -> None:
    """Check that the folder is free, or a run's that this recipe may go on with. Changes nothing.

    Raises:
        ValueError: If the folder is there but is no run's, a link leads nowhere or to another run's checkpoints, or a
            key that a run may not change has changed.
    """
    folder = config.run_dir
    check_links(folder, is_fresh=is_fresh)
    if not folder.exists() or is_empty_folder(folder):
        return
    if not (folder / CONFIG_FILE).is_file() or not (folder / ENVIRONMENT_FILE).is_file():
        raise ValueError(f"{folder}: exists and is no run's folder; choose another run.name or run.output_dir")
    if not is_fresh:
        saved = yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        allowed = ("mixture.policy", "mixture.prior") if "mixture" in config.resume.allow else ()
        check_changes(_with_defaults(saved), config.model_dump(mode="json"), folder=folder, allowed=allowed)


def _with_defaults(saved: dict[str, Any]) -> dict[str, Any]:
    """Return a run's config with the keys that came after it: one that is new and not used has not changed."""
    try:
        return parse_config(saved).model_dump(mode="json")
    except ValueError:  # keys of then that are none any more
        return saved


def open_run_folder(config: RunConfig, world: World, *, start: RunStart, is_fresh: bool) -> None:
    """Make the run's folder, dropping a former run only now that everything else is sound; on rank 0 only.

    Its record is written first: a process that is killed while the engine is built leaves a folder that the next start
    knows as a run's, and does not refuse.
    """
    folder = config.run_dir
    check_run_folder(config, is_fresh=is_fresh)
    folder.mkdir(parents=True, exist_ok=True)
    if is_fresh:
        _drop_former_run(folder)
    claim_checkpoints(folder)
    if is_fresh or not (folder / CONFIG_FILE).is_file():
        write_record(config, world, start=start, step=0)
    start.save_parts(folder)
    if start.endings:
        _write_json(folder / ENDINGS_FILE, start.endings)
    if not (folder / PRIOR_FILE).is_file():
        _write_json(folder / PRIOR_FILE, start.prior)


def _drop_former_run(folder: Path) -> None:
    """Delete all of a run but the two files by which its folder is known; the new run overwrites them.

    Links are removed, never what they lead to; that to checkpoints leads to a new folder on the same disk.
    """
    if (folder / CHECKPOINTS_FOLDER).is_symlink():
        point_to_new_folder(folder / CHECKPOINTS_FOLDER)
    kept = (CONFIG_FILE, ENVIRONMENT_FILE)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in kept and not (path.name == CHECKPOINTS_FOLDER and path.is_dir()):
            path.unlink()


def write_record(config: RunConfig, world: World, *, start: RunStart, step: int) -> None:
    """Write what is in force after a step: the resolved config, references, environment; on rank 0 only.

    What was in force before stays beside them where it differs (history.py).
    """
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    take_over(config.run_dir / CONFIG_FILE, text, step=step)
    if start.reference is not None:
        take_over(config.run_dir / REFERENCE_FILE, _json(start.reference), step=step)
    _write_json(config.run_dir / ENVIRONMENT_FILE, describe_environment(world))


def _json(values: Mapping[str, Any]) -> str:
    """Return a mapping as readable JSON."""
    return json.dumps(dict(values), indent=1) + "\n"


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a mapping as readable JSON."""
    path.write_text(_json(values), encoding="utf-8")


def check_changes(saved: dict[str, Any], current: dict[str, Any], *, folder: Path, allowed: tuple[str, ...]) -> None:
    """Say which keys changed since the run began.

    Raises:
        ValueError: One line for each changed key that a run must keep.
    """
    before, now = flatten(saved), flatten(current)
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    fixed_keys = tuple(f"{key}." for key in _FIXED_KEYS if key not in allowed)
    fixed = [key for key in changed if f"{key}.".startswith(fixed_keys)]
    if fixed:
        raise ValueError(
            "\n".join(
                f"{key}: {now.get(key)!r}, but the run in {folder} began with {before.get(key)!r}; "
                "give it back, choose another run.name, or start over with --fresh"
                for key in fixed
            )
        )
    for key in changed:
        is_new = before.get(key) is None
        past = "did without it so far" if is_new else f"had {before[key]} so far"
        logger.info("%s: %s from here on; the run in %s %s", key, now.get(key, "not set"), folder, past)


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping as {dotted key: value}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
