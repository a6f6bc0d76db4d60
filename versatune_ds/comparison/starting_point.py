"""Make what all runs of a comparison start from, once: base model, detected mixture, references, plans.

Every stage is one `versatune` command that a user could run alone. It is logged, runs as a process of its own, and is
skipped if its result exists. Comparisons of one base model share all of it, one at a time.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from versatune_ds.comparison.base_model import base_model_folder, files_of_base_model
from versatune_ds.comparison.cells import Cell, plans_of_cell
from versatune_ds.comparison.mixture_plans import arguments_of, purpose_of
from versatune_ds.comparison.override_texts import texts
from versatune_ds.comparison.plan import ComparisonPlan
from versatune_ds.comparison.stage import run_stage as run_stage_of
from versatune_ds.config import DetectConfig, RunConfig, load_config
from versatune_ds.config.load import flatten
from versatune_ds.config.model import model_identity
from versatune_ds.launch.time_budget import TimeBudget
from versatune_ds.reference.transfer_file import transfer_path
from versatune_ds.run_folder.atomic import read_json, write_json
from versatune_ds.run_folder.file_lock import locked
from versatune_ds.run_folder.names import PRIOR_FILE, REFERENCE_FILE
from versatune_ds.training.saved_model import load_recipe

logger = logging.getLogger(__name__)

_SETTINGS_FILE = "settings.json"
_STAGE_SECTIONS = ("model", "data", "train", "validation", "detect", "reference")
"""Sections of the shared recipe that prior and references depend on; of the others, seed and unit of the weights."""

_ALSO_MEASURED = ("transfer", "mixed_run", "keep_models")
"""Keys of `reference` that add files to the references and change none: earlier starting points were made without."""


def make_starting_point(plan: ComparisonPlan, *, num_processes: int, budget: TimeBudget | None = None) -> list[str]:
    """Make base model, prior, references and plans, those that do not exist yet.

    A stage uses `num_processes`, or fewer where its batch does not divide among them.

    Returns:
        `key=value` texts that let a run start from them.

    Raises:
        ValueError: If what exists was made with other keys.
        RuntimeError: If a stage fails; the message names its log.
        OutOfTimeError: If the budget is over before all is made; a later call resumes there.
    """
    run_stage = partial(run_stage_of, budget=budget or TimeBudget(None))
    folder, model = plan.start_folder, base_model_folder(plan)
    start = texts({"model.name_or_path": str(model), "model.from_config": None})
    if load_config(plan.recipe, texts(plan.set)).model.gguf_file is not None:
        start += texts({"model.gguf_file": None})  # else the file would be looked for in the base model's folder
    with locked(folder / "lock", what="this comparison's starting point"):
        shared = load_config(plan.recipe, texts(plan.set))
        check_settings(plan)
        # The base model: given, or trained and then exported.
        if plan.base.recipe is not None and not _is_exported(model):
            base = load_config(plan.base.recipe, texts(plan.base.set))
            place = texts({"run.name": "base", "run.output_dir": str(folder)})
            processes = ("--processes", processes_of(base, at_most=num_processes))
            run_stage(folder, "train", plan.base.recipe, *texts(plan.base.set), *place, *processes)
            run_stage(folder, "export", folder / "base", "--output", model, "--force")
        # What is measured with it: prior and references.
        processes = ("--processes", processes_of(shared, at_most=num_processes))
        keys = [*texts(plan.set), *texts({"run.name": "start", "run.output_dir": str(folder)}), *start]
        for is_wanted, command, key in ((plan.detect, "detect", "prior"), (plan.reference, "reference", "reference")):
            if is_wanted:
                file = folder / f"{key}.json"
                if not file.is_file():
                    run_stage(folder, command, plan.recipe, *keys, "--output", file, *processes)
                start += texts({f"mixture.{key}": str(file)})
        _make_plans(plan, run_stage, keys=[*keys, *(text for text in start if text.startswith("mixture.prior="))])
    return start


def transfer_file(plan: ComparisonPlan) -> Path:
    """Return the file of what each domain does to the others, which plans are made from."""
    return transfer_path(plan.start_folder / REFERENCE_FILE)


def _make_plans(plan: ComparisonPlan, run_stage: Callable[..., None], *, keys: Sequence[str]) -> None:
    """Make the plans that do not exist yet, each for every target if that is its purpose.

    Raises:
        ValueError: If there is no transfer.json, or a plan of this name was made with other keys.
    """
    for name, options in plan.plans.items():
        for target in plan.targets if purpose_of(options) == "target" else (None,):
            file = plan.plan_file(name, target)
            for_target = [] if target is None else texts({"mixture.target": target})
            transfer = transfer_file(plan)
            if not _is_plan_of(file, transfer):
                file.parent.mkdir(parents=True, exist_ok=True)
                words = [*keys, *for_target, *arguments_of(options)]
                run_stage(plan.start_folder, "plan", plan.recipe, *words, "--transfer", transfer, "--output", file)


def _is_plan_of(file: Path, transfer: Path) -> bool:
    """Return whether a plan exists and was made from the transfer.json that is there now."""
    content = read_json(file)
    if content is None:
        return False
    digest = hashlib.sha256(transfer.read_bytes()).hexdigest() if transfer.is_file() else None
    return content.get("provenance", {}).get("transfer", {}).get("sha256") == digest


def digest_of_start(plan: ComparisonPlan, cell: Cell | None = None) -> str:
    """Return a digest of what runs start from: base model and, where the comparison has them, prior and references.

    With a run, the plans that its values name are part of it. One that names none is not bound to any, so that plans
    can be added to a comparison that has results.

    The files are where every comparison of this starting point finds them; made again, they have the same names.
    """
    folder, files = plan.start_folder, files_of_base_model(plan)
    if plan.detect:
        files.append(folder / PRIOR_FILE)
    if plan.reference:
        files.append(folder / REFERENCE_FILE)
    if cell is not None:
        files += plans_of_cell(plan, cell)
    return _digest(tuple((path, path.stat().st_mtime_ns) for path in files))


@cache
def _digest(files: tuple[tuple[Path, int], ...]) -> str:
    """Return a digest of files; they are read again only if one was rewritten, by its time in nanoseconds."""
    digest = hashlib.sha256()
    for path, _ in files:
        digest.update(path.name.encode())
        with path.open("rb") as stream:  # weights may be larger than memory
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def processes_of(config: RunConfig, *, at_most: int) -> int:
    """Return the largest number of processes among which a recipe's batch divides into micro-batches.

    Worked example: 16 rows in micro-batches of 4 take 4 processes of 6.
    """
    num_micro_batches = config.train.rows_per_batch // config.train.rows_per_micro_batch
    return max((n for n in range(1, at_most + 1) if num_micro_batches % n == 0), default=1)


def check_settings(plan: ComparisonPlan) -> None:
    """Store the settings of the starting point at the first call, and compare with them at later ones.

    Raises:
        ValueError: If it differs: runs from two starting points must not meet in one table.
    """
    # The settings requested now, and those of the earlier call.
    shared = load_config(plan.recipe, texts(plan.set))
    asked = {"base": _base_settings(plan)}
    if plan.detect or plan.reference:
        asked["stages"] = _stage_settings(shared)
    path = plan.start_folder / _SETTINGS_FILE
    kept = read_json(path) or {}
    recipe = "base: its recipe is not the one that the base model"
    what = {
        "base": recipe if plan.base.model is None else "base: its model is not the one that what",
        "stages": "set: the shared recipe is not the one that prior and references",
    }
    for name, options in plan.plans.items():
        asked[f"plans.{name}"] = {**options.model_dump(mode="json"), **_limits(shared)}
        what[f"plans.{name}"] = f"plans.{name}: its keys are not those that the plan of this name"
    # A part that was not made yet may still change.
    has_stages = any((plan.start_folder / name).exists() for name in ("start", PRIOR_FILE, REFERENCE_FILE))
    is_trained = (plan.start_folder / "base").is_dir() or _is_exported(plan.start_folder / "base_model")
    is_made = {
        "base": is_trained or (plan.base.model is not None and has_stages),
        "stages": has_stages,
        **{
            f"plans.{name}": any(plan.plan_file(name, target).is_file() for target in (*plan.targets, None))
            for name in plan.plans
        },
    }
    if plan.plans and is_made["stages"] and (plan.start_folder / REFERENCE_FILE).is_file():
        _check_transfer(plan)
    for part, values in asked.items():
        if not is_made[part] or part not in kept:
            continue
        before, now = (_decisive(settings) for settings in (kept[part], values))
        if before != now:
            verb = "were" if part == "stages" else "was"
            way_out = f"remove that folder, or name another starting point: base.name={plan.base.name}2"
            if part.startswith("plans."):
                way_out = "or give the plan another name"
            raise ValueError(
                f"{what[part]} in {plan.start_folder} {verb} made with ({_difference(before, now)}); use "
                f"the earlier value, {way_out}"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**kept, **asked})


def _check_transfer(plan: ComparisonPlan) -> None:
    """Check that references that exist were measured together with what a plan needs."""
    if not transfer_file(plan).is_file():
        raise ValueError(
            f"plans: {transfer_file(plan)}: no such file: the references there were measured without it; name another "
            f"starting point: base.name={plan.base.name}2"
        )


def _limits(config: RunConfig) -> dict[str, Any]:
    """Return what a plan depends on besides its own keys and the transfer table."""
    safeguards = config.mixture.safeguards
    return {"floor": safeguards.floor, "cap": safeguards.cap}


def _decisive(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings without what changes results by rounding alone, or not at all."""
    decisive = {**_with_later_keys(settings), "model": model_identity(settings.get("model", {}))}
    if reference := decisive.get("reference"):
        decisive["reference"] = {key: value for key, value in reference.items() if key not in _ALSO_MEASURED}
    return decisive


def _with_later_keys(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with the defaults of keys that came later, so that an earlier starting point is used on.

    Before there was `detect.embedding`, `classifier` was the default that is `auto` now; before `detect.method`,
    10 rounds and a tolerance of .005 were the defaults.
    """
    found = dict(settings)
    if detect := dict(found.get("detect") or {}):
        if "embedding" not in detect and detect.get("labeller") == "classifier":
            detect["labeller"] = "auto"
        if "method" not in detect and (detect.get("rounds"), detect.get("tol")) == (10, 0.005):
            detect = {name: value for name, value in detect.items() if name not in ("rounds", "tol")}
        found["detect"] = {**DetectConfig().model_dump(mode="json"), **detect}
    if domains := (found.get("data") or {}).get("domains"):
        described = {name: {"description": None, **files} for name, files in domains.items()}
        found["data"] = {**found["data"], "domains": described}
    return found


def _base_settings(plan: ComparisonPlan) -> dict[str, Any]:
    """Return the base model's recipe, or the digest of a given model: where its folder is does not matter.

    A GGUF file that the recipe starts from is converted, since the folder's name depends on its content.
    """
    if plan.base.recipe is None:
        files = files_of_base_model(plan)
        return {"sha256": _digest(tuple((path, path.stat().st_mtime_ns) for path in files))}
    return load_recipe(plan.base.recipe, texts(plan.base.set)).model_dump(mode="json")


def _stage_settings(config: RunConfig) -> dict[str, Any]:
    """Return what prior and references depend on besides the base model: not the policy's own keys."""
    sections = config.model_dump(mode="json")
    kept = {name: sections[name] for name in _STAGE_SECTIONS}
    return {**kept, "run": {"seed": config.run.seed}, "mixture": {"weight_unit": config.mixture.weight_unit}}


def stage_settings(plan: ComparisonPlan) -> dict[str, Any]:
    """Return what prior, references and plans of a comparison depend on besides the base model."""
    shared = load_config(plan.recipe, texts(plan.set))
    plans = {name: {**options.model_dump(mode="json"), **_limits(shared)} for name, options in plan.plans.items()}
    return {**_decisive(_stage_settings(shared)), "plans": plans}


def _difference(kept: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Return the first key that differs, with both values."""
    old, new = flatten(kept), flatten(asked)
    key = next(key for key in {**old, **new} if (key in old, old.get(key)) != (key in new, new.get(key)))
    return f"{key}: was {json.dumps(old.get(key))}, now {json.dumps(new.get(key))}"


def _is_exported(model: Path) -> bool:
    """Return whether the base model was exported completely: the tokenizer is written last."""
    return (model / "tokenizer_config.json").is_file()
