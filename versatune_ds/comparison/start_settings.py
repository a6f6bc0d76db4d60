"""Record the settings that a starting point was made with, and refuse to use it with others.

Runs from two starting points must not meet in one table. Settings that change a result by rounding alone, or that came
with a later version, make no difference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from versatune_ds.comparison.base_model import files_of_base_model
from versatune_ds.comparison.override_texts import texts
from versatune_ds.comparison.plan import ComparisonPlan
from versatune_ds.comparison.start_files import digest_of_files, is_exported, transfer_file
from versatune_ds.config import DetectConfig, RunConfig, load_config
from versatune_ds.config.later_keys import with_later_keys
from versatune_ds.config.load import flatten
from versatune_ds.config.model import model_identity
from versatune_ds.run_folder.atomic import read_json, write_json
from versatune_ds.run_folder.names import PRIOR_FILE, REFERENCE_FILE
from versatune_ds.training.saved_model import load_recipe

_SETTINGS_FILE = "settings.json"
_STAGE_SECTIONS = ("model", "data", "train", "validation", "detect", "reference")
"""Sections of the shared recipe that prior and references depend on; of the others, seed and unit of the weights."""
_ALSO_MEASURED = ("transfer", "mixed_run", "keep_models")
"""Keys of `reference` that add files to the references and change none: earlier starting points were made without."""


def check_settings(plan: ComparisonPlan) -> None:
    """Store the settings of the starting point at the first call, and compare with them at later ones.

    Raises:
        ValueError: If a part that exists was made with others, or without the transfer.json that a plan needs.
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
    is_made = _is_made(plan)
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


def _is_made(plan: ComparisonPlan) -> dict[str, bool]:
    """Return of each part, `base`, `stages` or `plans.NAME`, whether some of it exists."""
    has_stages = any((plan.start_folder / name).exists() for name in ("start", PRIOR_FILE, REFERENCE_FILE))
    is_trained = (plan.start_folder / "base").is_dir() or is_exported(plan.start_folder / "base_model")
    plans = {
        f"plans.{name}": any(plan.plan_file(name, target).is_file() for target in (*plan.targets, None))
        for name in plan.plans
    }
    return {
        "base": is_trained or (plan.base.model is not None and has_stages),
        "stages": has_stages,
        **plans,
    }


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
    decisive = _of_this_version(settings)
    decisive["model"] = model_identity(decisive.get("model", {}))
    if reference := decisive.get("reference"):
        decisive["reference"] = {key: value for key, value in reference.items() if key not in _ALSO_MEASURED}
    return decisive


def _of_this_version(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings as this version would have written them, so that an earlier starting point is used on.

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
    return with_later_keys(found)


def _base_settings(plan: ComparisonPlan) -> dict[str, Any]:
    """Return the base model's recipe, or the digest of a given model: where its folder is does not matter.

    A GGUF file that the recipe starts from is converted, since the folder's name depends on its content.
    """
    if plan.base.recipe is None:
        files = files_of_base_model(plan)
        return {"sha256": digest_of_files(tuple((path, path.stat().st_mtime_ns) for path in files))}
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
