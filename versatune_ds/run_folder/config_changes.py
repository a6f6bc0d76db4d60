"""Compare a recipe with the config that a run recorded: which keys changed, and which of them must not.

One line is reported for each cause: a section that is switched on or off is one change, however many keys it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from versatune_ds.config import RunConfig
from versatune_ds.config.load import flatten, parse_config
from versatune_ds.run_folder.names import CONFIG_FILE, DECISIONS_FILE, METRICS_FILE, complete_checkpoints
from versatune_ds.run_folder.recorded_config import is_run

_FIXED_KEYS = (
    "run.seed",
    "model.name_or_path",
    "model.from_config",
    "model.lora",
    "model.freeze",
    "data.row_tokens",
    "train.rows_per_batch",
    "train.precision",
    "train.optimizer",
    "mixture.policy",
    "mixture.prior",
    "mixture.weight_unit",
)
"""Keys, or sections, that must stay the same; a change of any other key between the parts of a run is logged. Data and
tokenizer are compared by content, when a checkpoint is loaded; whether a run may be longer than it was is decided in
training/length/extension.py."""


def has_begun(folder: Path) -> bool:
    """Return whether a run has recorded anything; one that failed before may start with other settings."""
    written = (METRICS_FILE, DECISIONS_FILE)
    return bool(complete_checkpoints(folder)) or any(
        (folder / name).is_file() and (folder / name).stat().st_size > 0 for name in written
    )


def check_changes(config: RunConfig) -> None:
    """Check that no key changed that makes a run what it is; one that has recorded nothing yet is not bound.

    Raises:
        ValueError: One line for each changed key, or section with several, that must stay the same.
    """
    folder = config.run_dir
    if not is_run(folder) or not has_begun(folder):
        return
    allowed = ("mixture.policy", "mixture.prior") if "mixture" in config.resume.allowed else ()
    before, now, lines = flatten(_saved_config(folder)), flatten(config.model_dump(mode="json")), []
    changed = [key for key, _, _ in _changes(before, now)]
    for fixed in _FIXED_KEYS:
        keys = [key for key in changed if f"{key}.".startswith(f"{fixed}.")]
        if keys and fixed not in allowed:
            name = keys[0] if len(keys) == 1 else fixed
            was = _in_words(before, keys, name=name)
            lines.append(
                f"{name}: {_in_words(now, keys, name=name)}, but the run in {folder} began with {was}; use the earlier "
                "value, choose another run.name, or start over with --fresh"
            )
    if lines:
        raise ValueError("\n".join(lines))


def changed_keys(config: RunConfig) -> list[tuple[str, Any, Any]]:
    """Return (key, value before, value now) of each dotted key that differs; `not set` means no value."""
    return _changes(flatten(_saved_config(config.run_dir)), flatten(config.model_dump(mode="json")))


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return what `changed_keys` does, of flat configs."""
    changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    return [(key, "not set" if before.get(key) is None else before[key], now.get(key, "not set")) for key in changed]


def _in_words(values: Mapping[str, Any], keys: Sequence[str], *, name: str) -> str:
    """Return the changed keys of a section, or one key's value, as a recipe would have it."""
    found = {key.removeprefix(f"{name}."): _as_yaml(values[key]) for key in keys if key in values and key != name}
    if not found:
        return _as_yaml(values.get(name))
    return "{" + ", ".join(f"{key}: {value}" for key, value in found.items()) + "}"


def _as_yaml(value: Any) -> str:
    """Return a value as a recipe would have it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def _saved_config(folder: Path) -> dict[str, Any]:
    """Return a folder's config, with the defaults of newer keys, so that these do not count as changed."""
    saved = yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    try:
        return parse_config(saved).model_dump(mode="json")
    except ValueError:  # it has keys that no longer exist
        return saved
