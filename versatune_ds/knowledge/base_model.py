"""Find the files of the model a recipe starts from, and identify it by a digest of their content.

So what was drawn from one model is never used for another, and prior.json records which model it belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download

from versatune_ds.config import ModelConfig
from versatune_ds.data.manifest import digest_of_texts
from versatune_ds.data.sources.source_digests import SourceDigests
from versatune_ds.log import first_line
from versatune_ds.model.build import check_model_weights
from versatune_ds.model.named_model import check_saved_model

_WEIGHT_SUFFIXES = (".safetensors", ".bin")
_SETTINGS = ("config.json", "generation_config.json")
OTHER_FORMATS = ["*.gguf", "*.onnx", "*.h5", "*.msgpack", "*.ot", "*.pth", "original/*"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """A saved model: its folder, and which one it is."""

    name: str
    """What the recipe calls it."""
    folder: Path
    digest: str
    """32 hexadecimal digits of its weights and settings."""


def find_base_model(model: ModelConfig, *, cache_dir: Path) -> BaseModel:
    """Return the saved model of a recipe; one on the Hub is fetched first, once for all processes.

    Args:
        model: The recipe's model section.
        cache_dir: Where the digests of large files are stored.

    Raises:
        ValueError: If the recipe has no saved model, none is found by its name, or its weights do not fit its config.
    """
    if model.name_or_path is None:
        raise ValueError(
            "model.name_or_path: missing; detect asks what a trained model knows, and model.from_config starts from "
            "random weights (give model.name_or_path=FOLDER model.from_config=null)"
        )
    check_saved_model(model)
    check_model_weights(model)
    folder = Path(model.name_or_path)
    if not folder.is_dir():
        folder = hub_folder(model.name_or_path, key="model.name_or_path", ignored=OTHER_FORMATS)
    files = sorted(path for path in folder.iterdir() if path.suffix in _WEIGHT_SUFFIXES or path.name in _SETTINGS)
    if not any(path.suffix in _WEIGHT_SUFFIXES for path in files):
        raise ValueError(
            f"model.name_or_path: {folder} has no weights (*.safetensors); for a run's folder write "
            f"`versatune export {folder}` and name its output"
        )
    return BaseModel(name=model.name_or_path, folder=folder, digest=digest_of_texts(SourceDigests(cache_dir).of(files)))


def hub_folder(name: str, *, key: str, ignored: Sequence[str]) -> Path:
    """Fetch a model of the Hub and return its local folder.

    Args:
        name: Its name on the Hub.
        key: Recipe key that gives the name, for the error.
        ignored: Patterns of files that are not needed.

    Raises:
        ValueError: If it cannot be fetched.
    """
    try:
        return Path(snapshot_download(name, ignore_patterns=list(ignored)))
    except Exception as error:  # huggingface_hub and the network each have their own
        reason = first_line(error)
        raise ValueError(f"{key}: {name!r} is no folder, nor found on the Hub: {reason}") from None
