"""Carry the results of a comparison to another machine in one small file, and load them there.

The file is a .tar.gz of JSON texts: evaluations, decisions and metrics of every run that is done, the base model's
evaluation, prior, references, transfer.json and plans. It has neither weights nor rows. Equal results make equal bytes.

A result is loaded if its settings and the content of what it started from are the same, wherever folders are. No path
of the archive is written to: files are looked up by the names that this comparison gives them.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from versatune_ds.comparison.base_model import files_of_base_model
from versatune_ds.comparison.cells import Cell, cells_of
from versatune_ds.comparison.kept_results import (
    BASE_FILE,
    BASE_SETTINGS_FILE,
    are_same,
    base_settings,
    contents_of,
    difference,
    folder_of,
    has_result,
    portable,
    settings_of,
    settings_path,
)
from versatune_ds.comparison.override_texts import texts
from versatune_ds.comparison.pack_file import CONTENT_FILE, FORMAT, Pack, archive_of
from versatune_ds.comparison.plan import ComparisonPlan
from versatune_ds.comparison.start_files import transfer_file
from versatune_ds.comparison.start_settings import stage_settings
from versatune_ds.config import load_config
from versatune_ds.run_folder.atomic import atomic_file, read_json, write_json, write_text
from versatune_ds.run_folder.names import (
    DECISIONS_FILE,
    ENVIRONMENT_FILE,
    EVALUATION_FILE,
    METRICS_FILE,
    PLAN_FILE,
    PRIOR_FILE,
    REFERENCE_FILE,
)

logger = logging.getLogger(__name__)

_RUN_FILES = (
    EVALUATION_FILE,
    METRICS_FILE,
    DECISIONS_FILE,
    PRIOR_FILE,
    PLAN_FILE,
    REFERENCE_FILE,
    ENVIRONMENT_FILE,
)


def write_pack(plan: ComparisonPlan, path: Path) -> None:
    """Write everything that is done into one file, and log its size."""
    files: dict[str, bytes] = {}
    settings: dict[str, Any] = {}
    # The starting point, and the base model's evaluation.
    for name in (PRIOR_FILE, REFERENCE_FILE, transfer_file(plan).name, *_plan_names(plan)):
        if (plan.start_folder / name).is_file():
            files[f"start/{name}"] = (plan.start_folder / name).read_bytes()
    if any(files):
        settings["stages"] = _stages(plan)
    kept = read_json(plan.folder / BASE_SETTINGS_FILE)
    if (plan.folder / BASE_FILE).is_file() and kept and "contents" in kept:
        files[BASE_FILE], settings["base"] = (plan.folder / BASE_FILE).read_bytes(), portable(kept)
    # The runs.
    num_runs, num_early = 0, 0
    for cell in _possible_cells(plan):
        kept = read_json(settings_path(plan, cell))
        if kept is None or not (folder_of(plan, cell) / EVALUATION_FILE).is_file():
            continue
        if "contents" not in kept:
            num_early += 1
            continue
        num_runs += 1
        settings[f"runs/{cell.run_name}"] = portable(kept)
        for name in _RUN_FILES:
            if (folder_of(plan, cell) / name).is_file():
                files[f"runs/{cell.run_name}/{name}"] = (folder_of(plan, cell) / name).read_bytes()
    content = {"format": FORMAT, "comparison": plan.name, "base_model": _base_model(plan), "settings": settings}
    content["sha256"] = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    files[CONTENT_FILE] = json.dumps(content, indent=1, sort_keys=True).encode()
    data = archive_of(files)
    with atomic_file(path) as stream:
        stream.write(data)
    logger.info("%s: %d runs, %.2f MB", path, num_runs, len(data) / 1e6)
    if num_early:
        logger.warning("%s: %d runs of an earlier version are left out: their data are not known", path, num_early)


def _possible_cells(plan: ComparisonPlan) -> list[Cell]:
    """Return every run there may be, those of the drawn mixtures with all seeds, since the best of them has all."""
    return list(cells_of(plan.model_copy(update={"static_seeds": None})))


def load_start(pack: Pack, plan: ComparisonPlan) -> None:
    """Load prior, references and plans that do not exist here and were made from the same base model and settings.

    Raises:
        ValueError: If the base model is on another machine only: one trained here again would be another model.
    """
    theirs, ours = pack.content["base_model"], _base_model(plan)
    if ours is None and theirs is not None:
        raise ValueError(
            f"--continue: {pack.path}: its runs start from base model {theirs[:12]}, which is not here; copy that "
            f"machine's {plan.start_folder.name}/base_model to {plan.start_folder}/base_model, or start over without it"
        )
    if theirs != ours:
        logger.warning(
            "%s: base model %s there, %s here: nothing is loaded", pack.path, (theirs or "none")[:12], ours[:12]
        )
        return
    kept = pack.content["settings"].get("stages")
    if kept is not None and kept != _stages(plan):
        logger.warning("%s: prior, references and plans are not loaded: %s", pack.path, difference(kept, _stages(plan)))
        return
    for name in (PRIOR_FILE, REFERENCE_FILE, transfer_file(plan).name, *_plan_names(plan)):
        data, file = pack.files.get(f"start/{name}"), plan.start_folder / name
        if data is None or (file.is_file() and file.read_bytes() == data):
            continue
        if file.is_file():
            logger.warning("%s: %s is not loaded: the one here is another", pack.path, name)
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, data.decode())
        logger.info("%s: %s is loaded", pack.path, name)


def load_results(pack: Pack, plan: ComparisonPlan, start: Sequence[str]) -> None:
    """Load the base model's evaluation and every run that has no result here and was made with the same settings."""
    kept, now = pack.content["settings"], base_settings(plan, start)
    here = read_json(plan.folder / BASE_SETTINGS_FILE)
    has_base = (plan.folder / BASE_FILE).is_file() and are_same(here or {}, now)
    if BASE_FILE in pack.files and not has_base and kept.get("base") == portable(now):
        plan.folder.mkdir(parents=True, exist_ok=True)
        write_text(plan.folder / BASE_FILE, pack.files[BASE_FILE].decode())
        write_json(plan.folder / BASE_SETTINGS_FILE, now)
    loaded, cells = [], _possible_cells(plan)
    for cell in cells:
        theirs = kept.get(f"runs/{cell.run_name}")
        if theirs is None or has_result(plan, cell, start):
            continue
        settings = settings_of(plan, cell, start)
        if theirs != portable(settings):
            logger.warning("%s: %s is not loaded: %s", pack.path, cell.run_name, difference(theirs, portable(settings)))
            continue
        folder, path = folder_of(plan, cell), settings_path(plan, cell)
        folder.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)
        for name in sorted(_RUN_FILES, key=lambda name: name == EVALUATION_FILE):  # with it the result is complete
            if (data := pack.files.get(f"runs/{cell.run_name}/{name}")) is not None:
                write_text(folder / name, data.decode())
        loaded.append(cell.run_name)
    known = {f"runs/{cell.run_name}" for cell in cells}
    others = [name.removeprefix("runs/") for name in kept if name.startswith("runs/") and name not in known]
    if others:
        logger.warning("%s: runs that this comparison does not have: %s", pack.path, ", ".join(others))
    logger.info("%s: %d runs loaded", pack.path, len(loaded))


def _base_model(plan: ComparisonPlan) -> str | None:
    """Return a digest of the base model's files; None where it was not made yet."""
    files = files_of_base_model(plan)
    if not files:
        return None
    lines = [(file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files]
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


def _stages(plan: ComparisonPlan) -> dict[str, Any]:
    """Return what prior, references and plans were made with, without paths of this machine."""
    config = load_config(plan.recipe, texts(plan.set))
    return portable({**stage_settings(plan), "contents": contents_of(plan, config)})


def _plan_names(plan: ComparisonPlan) -> list[str]:
    """Return the files of all plans, within the folder of the starting point."""
    files = [plan.plan_file(name, target) for name in plan.plans for target in plan.targets or (None,)]
    return list(dict.fromkeys(str(file.relative_to(plan.start_folder)) for file in files))
