"""Keep the result of every run with the settings it was made with, and tell whether it still answers the question.

The settings are beside a run's folder. Two are the same if they agree in everything that a result depends on, wherever
folders and files are: what a path names enters by its content. Earlier versions kept the paths alone; their results are
used where all paths are the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from versatune_ds.comparison.cells import Cell, config_of_cell
from versatune_ds.comparison.override_texts import texts
from versatune_ds.comparison.plan import ComparisonPlan
from versatune_ds.comparison.start_files import digest_of_start
from versatune_ds.config import DataConfig, RunConfig, load_config
from versatune_ds.config.later_keys import with_later_keys
from versatune_ds.config.load import flatten
from versatune_ds.data.sources.domain_files import domain_files, has_test_rows, test_files
from versatune_ds.data.sources.find_files import find_files
from versatune_ds.data.sources.source_digests import SourceDigests
from versatune_ds.run_folder.atomic import read_json
from versatune_ds.run_folder.names import EVALUATION_FILE

_STAGES = ("detect", "reference")
"""Sections of a recipe that no run reads, only the stages of the starting point."""
BASE_FILE = "base_evaluation.json"
BASE_SETTINGS_FILE = "base_comparison.json"
_CONTENTS = "contents"
"""Key of the settings: what paths name, by its content."""
_FILE_KEYS = (
    ("data", "chat_template"),
    ("train", "deepspeed"),
    ("mixture", "prior"),
    ("mixture", "reference"),
    ("model", "tokenizer"),
)
"""Keys of a recipe that may be a file or a folder."""
_PLACES = (("run", "output_dir"), ("data", "folder"), ("data", "cache_dir"), ("model", "name_or_path"))
"""Keys that say where something is: the data are in the contents, the model is in the digest of the start."""


def folder_of(plan: ComparisonPlan, cell: Cell) -> Path:
    """Return the run's folder."""
    return plan.folder / "runs" / cell.run_name


def settings_path(plan: ComparisonPlan, cell: Cell) -> Path:
    """Return the file of a run's settings, which is beside its folder as its log is."""
    return plan.folder / "settings" / f"{cell.run_name}.json"


def result_of(plan: ComparisonPlan, cell: Cell) -> dict[str, Any]:
    """Return a run's evaluation by domain."""
    return read_json(folder_of(plan, cell) / EVALUATION_FILE)["domains"]


def has_result(plan: ComparisonPlan, cell: Cell, start: Sequence[str]) -> bool:
    """Return whether a run was evaluated, with the keys and the starting point it has now.

    Raises:
        ValueError: If it was made, or begun, with others: results of two settings must not be in one table.
    """
    folder, kept = folder_of(plan, cell), read_json(settings_path(plan, cell))
    if folder.is_dir() and kept is not None and not are_same(kept, settings_of(plan, cell, start)):
        raise ValueError(
            f"{folder}: made with other settings or from another base model; remove it, or give the comparison another "
            "name"
        )
    return kept is not None and (folder / EVALUATION_FILE).is_file()


def settings_of(plan: ComparisonPlan, cell: Cell, start: Sequence[str]) -> dict[str, Any]:
    """Return everything a run's result depends on."""
    config = config_of_cell(plan, cell, start=start)
    return {
        "config": config.model_dump(mode="json"),
        "start": digest_of_start(plan, cell),
        **evaluation_settings(plan),
        _CONTENTS: contents_of(plan, config),
    }


def base_settings(plan: ComparisonPlan, start: Sequence[str]) -> dict[str, Any]:
    """Return everything that the base model's evaluation depends on."""
    config = load_config(plan.recipe, [*start, *texts(plan.set)])
    values = config.model_dump(mode="json")
    return {
        "data": values["data"],
        "model": values["model"],
        **evaluation_settings(plan),
        "start": digest_of_start(plan),
        _CONTENTS: contents_of(plan, config),
    }


def evaluation_settings(plan: ComparisonPlan) -> dict[str, Any]:
    """Return how every model of the comparison is evaluated."""
    return {"split": split_of(plan), "exact": plan.exact, "choices": [str(path) for path in plan.choices]}


def split_of(plan: ComparisonPlan) -> str:
    """Return `test`, or `valid` where the data have no test rows."""
    data = load_config(plan.recipe, texts(plan.set)).data
    return "test" if has_test_rows(data, cache_dir=data.cache_dir or plan.output_dir / ".cache") else "valid"


def are_same(kept: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Return whether a result made with the kept settings is that of the settings of now."""
    if _CONTENTS not in kept:
        return _decisive(kept) == _decisive({key: value for key, value in now.items() if key != _CONTENTS})
    return portable(kept) == portable(now)


def difference(kept: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return the first setting in which two portable ones differ, with both values."""
    old, new = flatten(kept), flatten(now)
    key = next((key for key in {**old, **new} if old.get(key) != new.get(key)), None)
    return "none" if key is None else f"{key}: {json.dumps(old.get(key))} there, {json.dumps(new.get(key))} here"


def portable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings without paths of a machine; what they name is in the contents."""
    found = json.loads(json.dumps(_decisive(settings)))
    found.pop("choices", None)
    for config in (found, found.get("config") or {}):
        for section, key in _PLACES:
            (config.get(section) or {}).pop(key, None)
        for section, key in _FILE_KEYS:
            if isinstance((config.get(section) or {}).get(key), str) and f"{section}.{key}" in settings[_CONTENTS]:
                del config[section][key]
        for files in ((config.get("data") or {}).get("domains") or {}).values():
            for split in ("train", "valid"):
                files[split] = files[split] and [source for source in files[split] if not isinstance(source, str)]
    return found


def _decisive(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings without the keys of the starting point's stages, whose files are in the digest of the start.

    A key that a later version added is there with its default, so a result stays valid.
    """
    if "config" not in settings:
        return dict(settings)
    config = with_later_keys({name: section for name, section in settings["config"].items() if name not in _STAGES})
    return {**settings, "config": config}


def contents_of(plan: ComparisonPlan, config: RunConfig) -> dict[str, str]:
    """Return dotted key to a digest of what it names, of every key that names files: data, choices, settings."""
    cache_dir, values = plan.output_dir / ".cache", config.model_dump(mode="json")
    contents = {}
    if config.data.synthetic is None:
        contents["data"] = _digest_of_data(config.data.model_dump_json(), cache_dir)
    if plan.choices:
        contents["choices"] = _digest_of_paths(plan.choices, cache_dir)
    for section, key in _FILE_KEYS:
        value = (values.get(section) or {}).get(key)
        if isinstance(value, str) and Path(value).exists():
            contents[f"{section}.{key}"] = _digest_of_paths((Path(value),), cache_dir)
    return contents


@cache
def _digest_of_data(data: str, cache_dir: Path) -> str:
    """Return a digest of the local files of every domain and split; those of the Hub are named by the recipe."""
    config = DataConfig.model_validate_json(data)
    splits = {"data": domain_files(config, cache_dir=cache_dir)}
    if has_test_rows(config, cache_dir=cache_dir):
        splits["test"] = test_files(config, cache_dir=cache_dir)
    digests, lines = SourceDigests(cache_dir), []
    for split, domains in splits.items():
        for name, files in domains.items():
            for part in ("train", "valid"):
                local = [source for source in getattr(files, part) or () if isinstance(source, str)]
                found = find_files(local, key=f"data: {name}", cache_dir=cache_dir) if local else ()
                lines.append([split, name, part, digests.of(found)])
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


@cache
def _digest_of_paths(paths: tuple[Path, ...], cache_dir: Path) -> str:
    """Return a digest of files, and of those directly in folders."""
    files = [file for path in paths for file in (sorted(path.iterdir()) if path.is_dir() else [path]) if file.is_file()]
    return hashlib.sha256(json.dumps(SourceDigests(cache_dir).of(files)).encode()).hexdigest()
