"""Open a run's folder: make it, or come back to it with a recipe that still fits.

The one idea: the resolved config lies in the folder, so a resumed run can say which keys changed since it began, and
refuse those that would make it another run.
"""

from __future__ import annotations

import json
import logging
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from versatune_ds.config import RunConfig
from versatune_ds.distributed import World

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"
_FIXED_SECTIONS = ("model", "data")
_FIXED_KEYS = (
    "run.seed",
    "train.steps",
    "train.rows_per_batch",
    "train.precision",
    "mixture.policy",
    "mixture.prior",
    "mixture.weight_unit",
)
"""Keys that make a run what it is; everything else may change between its parts, and is said."""

_LIBRARIES = ("torch", "deepspeed", "transformers", "datasets", "numpy", "versatune_ds")


def open_run_folder(config: RunConfig, *, is_fresh: bool, world: World) -> None:
    """Make the run's folder, or check that the recipe fits the one that is there. Called on rank 0 only.

    Raises:
        ValueError: If the folder is there but is no run's, or a key that a run may not change has changed.
    """
    folder = config.run_dir
    if folder.exists() and not (folder / CONFIG_FILE).is_file() and any(folder.iterdir()):
        raise ValueError(f"{folder}: exists and is no run's folder (no {CONFIG_FILE}); choose another run.name")
    if is_fresh and folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    current = config.model_dump(mode="json")
    if (folder / CONFIG_FILE).is_file():
        saved = yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        check_changes(saved, current, folder=folder)
    text = yaml.safe_dump(current, sort_keys=False, allow_unicode=True)
    (folder / CONFIG_FILE).write_text(text, encoding="utf-8")
    environment = json.dumps(describe_environment(world), indent=1)
    (folder / "environment.json").write_text(environment, encoding="utf-8")


def check_changes(saved: dict[str, Any], current: dict[str, Any], *, folder: Path) -> None:
    """Say which keys changed since the run began.

    Raises:
        ValueError: One line for each changed key that a run must keep.
    """
    before, now = flatten(saved), flatten(current)
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    fixed = [key for key in changed if key.split(".")[0] in _FIXED_SECTIONS or key in _FIXED_KEYS]
    if fixed:
        raise ValueError(
            "\n".join(
                f"{key}: {now.get(key)!r}, but the run in {folder} began with {before.get(key)!r}; "
                "give it back, choose another run.name, or start over with --fresh"
                for key in fixed
            )
        )
    for key in changed:
        logger.info("%s: %r since now, %r before", key, now.get(key), before.get(key))


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
