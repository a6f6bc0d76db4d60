"""Open a run's folder: make it, or resume in it with a recipe that still fits.

The folder contains the resolved config, so a resumed run can log which keys changed since it began, and refuse those
that would make it another run. The settings of a run's earlier parts stay beside the current ones: `config.yaml` is the
current one, `config_until_step_00000005.yaml` made the decisions up to step 5. A run that resumes from an earlier step
than it had reached drops the decisions after that step, and their settings too. `environment.json` describes where a
result was made: versions, commit, devices.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from versatune_ds.config import RunConfig
from versatune_ds.distributed import World
from versatune_ds.run_folder.atomic import write_json, write_text
from versatune_ds.run_folder.config_changes import changed_keys, check_changes, has_begun
from versatune_ds.run_folder.links import check_links, claim_checkpoints, is_empty_folder, point_to_new_folder
from versatune_ds.run_folder.names import (
    CHECKPOINTS_FOLDER,
    CONFIG_FILE,
    ENDINGS_FILE,
    ENVIRONMENT_FILE,
    PLAN_FILE,
    PRIOR_FILE,
    REFERENCE_FILE,
)

logger = logging.getLogger(__name__)

_LIBRARIES = ("torch", "deepspeed", "transformers", "datasets", "numpy", "versatune_ds")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStart:
    """What a run starts from, as recorded in its folder."""

    prior: Mapping[str, Any]
    """Content of prior.json: weights of step 0 by domain, and their origin."""
    plan: Mapping[str, Any] | None = None
    """Content of plan.json; None where the prior is no plan."""
    reference: Mapping[str, Any] | None = None
    """Content of reference.json; None where no reference losses were given."""
    endings: Mapping[str, Any] = field(default_factory=dict)
    """Content of endings.json, as `end_tokens.endings_of_data` returns it; empty for none."""
    weights_made_on: str | None = None
    """Kind of device on which random initial weights were made, cpu or cuda: their numbers depend on it."""
    save_parts: Callable[[Path], None] = lambda folder: None
    """Writes the tokenizer and the model's config into the run's folder."""


def check_run_folder(config: RunConfig, *, is_fresh: bool) -> None:
    """Check that a run's folder is free, or contains a run that this recipe may resume. Changes nothing.

    Raises:
        ValueError: If the folder exists but is no run's, a link leads nowhere or to another run's checkpoints, or a key
            that must stay the same has changed.
    """
    folder = config.run_dir
    check_links(folder, is_fresh=is_fresh)
    if not folder.exists() or is_empty_folder(folder):
        return
    if not (folder / CONFIG_FILE).is_file() or not (folder / ENVIRONMENT_FILE).is_file():
        raise ValueError(f"{folder}: exists and is no run's folder; choose another run.name or run.output_dir")
    if not is_fresh:
        check_changes(config)


def open_run_folder(config: RunConfig, world: World, *, start: RunStart, is_fresh: bool) -> None:
    """Make the run's folder, and with `is_fresh` delete the former run in it; on rank 0 only.

    The caller has checked everything else by now. The config is written first: a process that is killed while the
    engine is built leaves a folder that the next start recognises as a run's.
    """
    folder = config.run_dir
    check_run_folder(config, is_fresh=is_fresh)
    is_new = is_fresh or not (folder / CONFIG_FILE).is_file() or not has_begun(folder)
    if not is_new:
        # What may differ changes nothing of the run itself: each difference is logged where it is found.
        for key, was, now in (change for change in changed_keys(config) if change[0] != "resume.allow"):
            logger.info("%s: now %s, was %s (run in %s)", key, now, was, folder)
    folder.mkdir(parents=True, exist_ok=True)
    if is_fresh:
        _delete_former_run(folder)
    claim_checkpoints(folder)
    if is_new:
        write_record(config, world, start=start, step=0)
    start.save_parts(folder)
    if start.endings:
        write_json(folder / ENDINGS_FILE, dict(start.endings))
    if is_new or not (folder / PRIOR_FILE).is_file():
        write_json(folder / PRIOR_FILE, dict(start.prior))
        _write_plan(folder, start.plan)


def _write_plan(folder: Path, plan: Mapping[str, Any] | None) -> None:
    """Write the plan that a run starts from; without one, delete that of a start that never trained."""
    if plan is None:
        (folder / PLAN_FILE).unlink(missing_ok=True)
    else:
        write_json(folder / PLAN_FILE, dict(plan))


def _delete_former_run(folder: Path) -> None:
    """Delete all of a run but the two files that mark its folder as a run's, which the new run overwrites.

    Links are removed, never what they lead to. The link to checkpoints is pointed to a new folder on the same disk.
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
    """Write what applies after a step: the resolved config, references, environment; on rank 0 only.

    Earlier versions that differ are kept beside them.
    """
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_version(config.run_dir / CONFIG_FILE, text, step=step)
    if start.reference is not None:
        write_version(config.run_dir / REFERENCE_FILE, json.dumps(dict(start.reference), indent=1) + "\n", step=step)
    made_on = start.weights_made_on if step == 0 else weights_made_on(config.run_dir)
    write_json(config.run_dir / ENVIRONMENT_FILE, {**describe_environment(world), "weights_made_on": made_on})


def weights_made_on(run_dir: Path) -> str | None:
    """Return the kind of device that made a run's random initial weights: None where it is not recorded.

    Runs of earlier versions, which do not record it, made them on the CPU.
    """
    path = run_dir / ENVIRONMENT_FILE
    return json.loads(path.read_text(encoding="utf-8")).get("weights_made_on") if path.is_file() else None


def write_version(path: Path, text: str, *, step: int) -> None:
    """Write a file that applies after a step, and keep the version that applied before if it differs.

    Below step 1 the run begins and there is no past. A kill between the lines leaves files from which the same call
    gives the same result.
    """
    # A resume from an earlier step: the version that applied at that step is the first one that outlasted it.
    later = [(until, former) for until, former in former_versions(path) if until > step or step < 1]
    active = later[0][1] if later else path
    former = path.with_name(f"{path.stem}_until_step_{step:08d}{path.suffix}")
    has_made_decisions = step >= 1 and active.is_file() and not former.is_file()
    if has_made_decisions and active.read_text(encoding="utf-8") != text:
        write_text(former, active.read_text(encoding="utf-8"))
    write_text(path, text)
    for _, former in later:
        former.unlink()


def former_versions(path: Path) -> list[tuple[int, Path]]:
    """Return (last step, file) of the earlier versions, oldest first."""
    pattern = re.compile(re.escape(path.stem) + r"_until_step_(\d+)" + re.escape(path.suffix))
    matches = ((pattern.fullmatch(other.name), other) for other in path.parent.glob(f"{path.stem}_until_step_*"))
    return sorted((int(match[1]), other) for match, other in matches if match)


def version_at(path: Path, *, step: float) -> Path:
    """Return the version that applied when the decision after a step was made."""
    return next((former for until, former in former_versions(path) if until >= step), path)


def describe_environment(world: World) -> dict[str, Any]:
    """Return what a result depends on besides the recipe: versions, commit, devices; no secret, no user name."""
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
