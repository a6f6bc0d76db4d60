"""Load a recipe whose model may be a GGUF file; it becomes an ordinary folder in the cache at its first use."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from versatune_ds.config import ModelConfig, RunConfig, load_config
from versatune_ds.config.load import Recipe

logger = logging.getLogger(__name__)

_VERSION = "1"
"""Changes when conversions write something else; the folders are then made again under another name."""


def load_recipe(recipe: Recipe, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the config of a recipe, as `load_config` does; a GGUF file in it is converted first.

    Without one torch is not imported.

    Raises:
        ValueError: As `load_config` does, or if the file cannot be converted.
    """
    config = load_config(recipe, overrides)
    return with_saved_model(config)


def with_saved_model(config: RunConfig) -> RunConfig:
    """Return the config with the converted folder of `model.gguf_file` as `model.name_or_path`.

    The same is done for `reference.model`. The key stays, as the path of the file, so that a run's own config.yaml
    finds the file again where the cache was deleted. A config without one is returned unchanged.
    """
    if all(model is None or model.gguf_file is None for model in (config.model, config.reference.model)):
        return config
    from versatune_ds.training.prepared_data import cache_folder

    cache_dir = cache_folder(config)
    changes: dict[str, Any] = {"model": _converted(config.model, section="model", cache_dir=cache_dir)}
    if config.reference.model is not None:
        other = _converted(config.reference.model, section="reference.model", cache_dir=cache_dir)
        changes["reference"] = config.reference.model_copy(update={"model": other})
    return config.model_copy(update=changes)


def _converted(model: ModelConfig, *, section: str, cache_dir: Path) -> ModelConfig:
    """Return a model section that names the converted folder; several processes convert one file once.

    Args:
        model: The section.
        section: Its dotted key in the recipe, for messages.
        cache_dir: Where the folder is made.

    Raises:
        ValueError: If the file cannot be converted, or no tokenizer is known.
    """
    from versatune_ds.data.manifest import digest_of_texts
    from versatune_ds.data.sources.source_digests import SourceDigests
    from versatune_ds.model.gguf_file import convert_gguf, gguf_path, is_converted, read_header
    from versatune_ds.run_folder.file_lock import locked

    if model.gguf_file is None or (model.name_or_path is not None and is_converted(Path(model.name_or_path))):
        return model
    path, key = gguf_path(model, section=section), f"{section}.gguf_file"
    content = SourceDigests(cache_dir).of([path])[0].partition(":")[2]
    folder = cache_dir / f"gguf-{digest_of_texts([_VERSION, content])[:16]}"
    with locked(cache_dir / "locks" / folder.name, what=f"the conversion of {path.name}"):
        if is_converted(folder):
            logger.info("%s: %s was converted before: %s", key, path.name, folder)
        else:
            convert_gguf(read_header(path, key=key), folder=folder, key=key)
    if model.tokenizer is None and not (folder / "tokenizer_config.json").is_file():
        raise ValueError(f"{section}.tokenizer: {path} contains no tokenizer; give one: a folder or a Hub name")
    return model.model_copy(update={"name_or_path": str(folder), "gguf_file": str(path.resolve())})
