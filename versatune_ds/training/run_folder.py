"""Open a run's folder: make it, or come back to it with a recipe that still fits.

The one idea: the resolved config lies in the folder, so a resumed run can say which keys changed since it began, and
refuse those that would make it another run.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from versatune_ds.config import RunConfig
from versatune_ds.config.load import parse_config
from versatune_ds.distributed import World
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.files import no_such_file
from versatune_ds.mixture.reference import References
from versatune_ds.training.end_tokens import ENDINGS_FILE
from versatune_ds.training.model import save_model_settings
from versatune_ds.training.run_history import take_over
from versatune_ds.training.run_links import (
    CHECKPOINTS,
    check_links,
    claim_checkpoints,
    is_empty_folder,
    point_to_new_folder,
)

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"
REFERENCE_FILE = "reference.json"
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

_LIBRARIES = ("torch", "deepspeed", "transformers", "datasets", "numpy", "versatune_ds")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStart:
    """Hold what a run starts from, as it is kept in the run's folder."""

    tokenizer: Any
    causal_lm: Any
    weights_K: np.ndarray
    references: References
    domain_set: DomainSet
    endings: Mapping[str, Any] = field(default_factory=dict)
    """What ended the turns of the training data, as `end_tokens.endings_of_data` returns it."""


def check_named_files(config: RunConfig) -> None:
    """Check that the files a recipe names are there, before anything that costs time.

    Raises:
        ValueError: One line for each file that is missing.
    """
    named = {"mixture.prior": config.mixture.prior, "mixture.reference": config.mixture.reference}
    missing = [no_such_file(v, what=key) for key, v in named.items() if isinstance(v, Path) and not v.is_file()]
    if missing:
        raise ValueError("\n".join(missing))


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
    start.tokenizer.save_pretrained(folder / "tokenizer")
    save_model_settings(start.causal_lm, folder / "model")
    if start.endings:
        _write_json(folder / ENDINGS_FILE, dict(start.endings))
    if not (folder / "prior.json").is_file():
        weights = start.domain_set.to_dict(start.weights_K)
        _write_json(folder / "prior.json", {"weights": weights, "origin": str(config.mixture.prior)})


def _drop_former_run(folder: Path) -> None:
    """Delete all of a run but the two files by which its folder is known; the new run overwrites them.

    Links are removed, never what they lead to; that to checkpoints leads to a new folder on the same disk.
    """
    if (folder / CHECKPOINTS).is_symlink():
        point_to_new_folder(folder / CHECKPOINTS)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in (CONFIG_FILE, ENVIRONMENT_FILE) and not (path.name == CHECKPOINTS and path.is_dir()):
            path.unlink()


def write_record(config: RunConfig, world: World, *, start: RunStart, step: int) -> None:
    """Write what is in force after a step: the resolved config, references, environment; on rank 0 only.

    What was in force before stays beside them where it differs (run_history.py).
    """
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    take_over(config.run_dir / CONFIG_FILE, text, step=step)
    if start.references.losses_K is not None:
        losses = start.domain_set.to_dict(start.references.losses_K)
        take_over(config.run_dir / REFERENCE_FILE, _json({**start.references.provenance, "losses": losses}), step=step)
    _write_json(config.run_dir / ENVIRONMENT_FILE, describe_environment(world))


def _json(values: dict[str, Any]) -> str:
    """Return a mapping as readable JSON."""
    return json.dumps(values, indent=1) + "\n"


def _write_json(path: Path, values: dict[str, Any]) -> None:
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


def describe_environment(world: World) -> dict[str, Any]:
    """Return what a result depends on besides the recipe: versions, commit, devices. No secret, no user name."""
    return {
        "versions": {name: _version(name) for name in _LIBRARIES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "commit": _commit(),
        "world_size": world.world_size,
        "launcher": world.launcher,
        "slurm_job_id": os.environ.get("SLURM_JOB_ID"),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or ["cpu"],
    }


def _version(library: str) -> str | None:
    """Return an installed library's version."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of this source tree, None outside a git checkout."""
    source = Path(__file__).resolve().parent
    try:
        result = subprocess.run(["git", "-C", source, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
