"""Check before loading that `model.name_or_path` exists, and is a model and not LoRA adapters.

A Hub name is `owner/name`; any other text is a folder. A missing folder is most often an export that was not made.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

from huggingface_hub import hf_hub_download, try_to_load_from_cache

from versatune_ds.config import ModelConfig
from versatune_ds.run_folder.names import EXPORT_FILE, EXPORT_FOLDER

_ADAPTER_CONFIG = "adapter_config.json"


def check_saved_model(model: ModelConfig) -> None:
    """Check that `model.name_or_path` can be loaded as a model; a Hub name is `owner/name`.

    Raises:
        ValueError: If it must be a folder and there is none, or if it contains adapters.
    """
    name = model.name_or_path
    if name is None:
        return
    check_is_no_adapter(name)
    if Path(name).is_dir():
        return
    path = Path(name)
    if path.is_absolute() or name.startswith((".", "~")) or len(path.parts) > 2:
        run = path.parent if path.name == EXPORT_FOLDER else "RUN"
        raise ValueError(
            f"model.name_or_path: {name}: no such folder; `versatune export {run}` writes a run's model, by default to "
            f"RUN/{EXPORT_FOLDER}; a model of the Hub is named owner/name"
        )


def check_is_no_adapter(name: str, *, key: str = "model.name_or_path") -> None:
    """Check that a folder or Hub name is a model, not adapters that belong to one.

    transformers would load the adapters' base model and, where peft is installed, the adapters beside it; training and
    export would then not be of the model that the user meant.

    Raises:
        ValueError: If it is adapters; the message says how to merge them.
    """
    is_adapter = (Path(name) / _ADAPTER_CONFIG).is_file() if Path(name).is_dir() else _is_adapter_on_hub(name)
    if is_adapter:
        raise ValueError(adapters_line(name, key=key))


def exported_from(name: str) -> str | None:
    """Return which run's export a folder is, such as `the run law, after step 200`; None where that is not recorded."""
    try:
        origin = json.loads((Path(name) / EXPORT_FILE).read_text(encoding="utf-8"))
        after = f", after step {origin['step']}" if "step" in origin else ""
        return f"the run {origin['run']}{after}"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def adapters_line(name: str, *, key: str = "model.name_or_path") -> str:
    """Return the error message for adapters given as a model; those of a run are exported again, merged."""
    what = f"{key}: {name} contains adapters ({_ADAPTER_CONFIG}), not a model"
    if (run := exported_from(name)) is not None:
        return (
            f"{what}: those of {run}; export them merged into their base model (versatune export RUN --output FOLDER, "
            "without --lora adapter), and give that FOLDER here"
        )
    return (
        f"{what}; merge them into their base model first: "
        "`versatune export RUN` does for a run's own, and for others peft's "
        f"AutoPeftModelForCausalLM.from_pretrained({name!r}).merge_and_unload().save_pretrained(FOLDER); "
        "then give that FOLDER here"
    )


@functools.cache
def _is_adapter_on_hub(name: str) -> bool:
    """Return whether a Hub name has adapters; the Hub is asked only about what was never downloaded."""
    try:
        cached = try_to_load_from_cache(name, _ADAPTER_CONFIG)
        if cached is not None or try_to_load_from_cache(name, "config.json") is not None:
            return isinstance(cached, str)
        hf_hub_download(name, _ADAPTER_CONFIG)
    except Exception:  # no such name, no such file, or no network: loading the model reports which
        return False
    return True
