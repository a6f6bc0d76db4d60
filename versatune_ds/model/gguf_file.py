"""Turn a GGUF file into an ordinary transformers folder, once: weights dequantised, with config and tokenizer.

transformers reads GGUF, but a model loaded from it refuses to be saved, and every load dequantises again. So the file
is converted at its first use, and the folder is the model from then on. Needs the extra `gguf`.

Not covered: adapters, files split into several parts, and architectures that transformers cannot read. The whole model
is in memory during the conversion.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from huggingface_hub import hf_hub_download
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from versatune_ds.config import ModelConfig
from versatune_ds.data.manifest import digest_of_file
from versatune_ds.log import first_line
from versatune_ds.model.build import DTYPES, save_model_settings
from versatune_ds.model.saved_weights import without_load_report
from versatune_ds.model.sizes import sizes_of
from versatune_ds.model.weight_files import write_weights
from versatune_ds.run_folder.atomic import atomic_folder, read_json, write_json

logger = logging.getLogger(__name__)

ORIGIN_FILE = "gguf.json"
"""Written last into a converted folder: which file it was made from."""

KEY = "model.gguf_file"
_MAGIC = b"GGUF"
_EXACT_ONLY_IN_FP32 = ("F32", "F16", "F64")
"""Types of weights that bf16 would round. Of the others, the quantisation step is at least as large as bf16's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFile:
    """What is read from the header of a GGUF file."""

    path: Path
    architecture: str
    weight_types: tuple[str, ...]
    """Types of its matrices, sorted; norms and biases are not counted."""
    has_tokenizer: bool

    @property
    def precision(self) -> Literal["fp32", "bf16"]:
        """Return the smallest precision that loses nothing of this file that its quantisation has not lost."""
        return "fp32" if any(name in _EXACT_ONLY_IN_FP32 for name in self.weight_types) else "bf16"


def gguf_path(model: ModelConfig, *, section: str = "model") -> Path:
    """Return the file of `model.gguf_file`: a path, or a file in the folder or Hub name of `model.name_or_path`.

    Args:
        model: A model section.
        section: Its dotted key in the recipe, for messages.

    Raises:
        ValueError: If there is no such file.
    """
    key = f"{section}.gguf_file"
    path, name = Path(model.gguf_file or ""), model.name_or_path
    if name is None or path.is_absolute():
        found = path
    elif Path(name).is_dir():
        found = Path(name) / path
    elif name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ValueError(f"{section}.name_or_path: {name}: no such folder; expected the one that contains {path}")
    else:
        try:
            return Path(hf_hub_download(name, str(path)))
        except Exception as error:  # huggingface_hub and the network each have their own
            raise ValueError(f"{key}: {path} is not found in {name} on the Hub: {first_line(error)}") from None
    check_is_gguf(found, key=key)
    return found


def check_is_gguf(path: Path, *, key: str = KEY) -> None:
    """Check that a file exists and begins as GGUF files do.

    Raises:
        ValueError: If it does not.
    """
    if not path.is_file():
        raise ValueError(f"{key}: {path}: no such file; give the path of a .gguf file")
    with path.open("rb") as stream:
        if stream.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"{key}: {path} is not a GGUF file, which begins with the letters GGUF; download it again")


def read_header(path: Path, *, key: str = KEY) -> GgufFile:
    """Read the header of a GGUF file.

    Raises:
        ValueError: If it is missing, corrupt, not a complete model, or the extra `gguf` is not installed.
    """
    check_is_gguf(path, key=key)
    if find_spec("gguf") is None:
        raise ValueError(f"{key}: reading {path.name} needs the package gguf; pip install 'versatune_ds[gguf]'")
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        names = [name for name in reader.fields if name.startswith(("general.", "split."))]
        texts = {name: reader.fields[name].contents() for name in names}
        types = {tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1}
    except Exception as error:  # numpy's, struct's and its own, depending on where the file ends
        raise ValueError(f"{key}: cannot read {path}: {first_line(error)}; download it again") from None
    if texts.get("general.type", "model") != "model":
        raise ValueError(
            f"{key}: {path} contains {texts['general.type']} weights, not a model; merge an adapter into its base "
            "model, and give the file of the result"
        )
    if int(texts.get("split.count", 1)) > 1:
        raise ValueError(f"{key}: {path} is one of {texts['split.count']} parts; join them with `gguf-split --merge`")
    return GgufFile(
        path=path,
        architecture=str(texts.get("general.architecture", "unknown")),
        weight_types=tuple(sorted(types)),
        has_tokenizer="tokenizer.ggml.model" in reader.fields,
    )


def is_converted(folder: Path) -> bool:
    """Return whether a folder was written by `convert_gguf`, completely."""
    return (folder / ORIGIN_FILE).is_file()


def converted_from(folder: Path) -> dict[str, Any]:
    """Return what a converted folder records of its file: name, digest, precision."""
    return json.loads((folder / ORIGIN_FILE).read_text(encoding="utf-8"))


def is_conversion_of(folder: Path, path: Path, *, precision: str | None = None) -> bool:
    """Return whether a folder was converted from a file of this content, in this precision if one is given."""
    if not is_converted(folder):
        return False
    made = converted_from(folder)
    return made["digest"] == digest_of_file(path) and precision in (None, made["precision"])


def convert_gguf(
    file: GgufFile, *, folder: Path, precision: Literal["fp32", "bf16"] | None = None, key: str = KEY
) -> None:
    """Write the model of a GGUF file as a folder that transformers loads, complete or not at all.

    The folder gets the tokenizer of the file, if that contains one.

    Args:
        file: The file, from `read_header`.
        folder: Where it is written; it must not exist.
        precision: Of the weights; by default `file.precision`.
        key: Recipe key or argument that gave the file; it opens every message.

    Raises:
        ValueError: If transformers cannot read its architecture, or its weights are incomplete.
    """
    chosen = precision or file.precision
    reason = "as requested" if precision else f"its matrices are {', '.join(file.weight_types)}"
    logger.info("converting %s to %s in %s (%s); once", file.path.name, folder, chosen, reason)
    place = {"pretrained_model_name_or_path": str(file.path.parent), "gguf_file": file.path.name}
    try:
        config = AutoConfig.from_pretrained(**place)
        tokenizer = AutoTokenizer.from_pretrained(**place) if file.has_tokenizer else None
        with without_load_report():
            loaded, info = AutoModelForCausalLM.from_pretrained(
                **place, **_dequantised(), dtype=DTYPES[chosen], output_loading_info=True
            )
    except Exception as error:  # transformers has several for what it cannot read
        raise ValueError(
            f"{key}: transformers cannot read {file.path}, architecture {file.architecture}: {first_line(error)}; "
            "give a folder of transformers instead"
        ) from None
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{key}: {file.path} lacks {len(missing)} weights ({missing[0]}, ...); download it again")
    plain = _plain_copy(loaded, config, dtype=DTYPES[chosen])
    weights = {name: weight for name, weight in plain.state_dict().items() if name not in plain.all_tied_weights_keys}
    with atomic_folder(folder) as place_of_files:
        write_weights(weights, folder=place_of_files, dtype=DTYPES[chosen])
        save_model_settings(plain, place_of_files)
        if tokenizer is not None:
            tokenizer.save_pretrained(place_of_files)
            _drop_tokens_beyond(place_of_files, num_embeddings=sizes_of(config).vocabulary)
        origin = {
            "file": file.path.name,
            "digest": digest_of_file(file.path),
            "precision": chosen,
            "transformers": version("transformers"),
            "gguf": version("gguf"),
        }
        write_json(place_of_files / ORIGIN_FILE, origin)


def _drop_tokens_beyond(folder: Path, *, num_embeddings: int) -> None:
    """Remove special tokens that have no embedding from a saved tokenizer.

    transformers adds `<|endoftext|>` to every byte-level vocabulary that lacks it (5.24), behind the last embedding;
    the model would be refused for having fewer embeddings than token ids.
    """
    path, settings_path = folder / "tokenizer.json", folder / "tokenizer_config.json"
    values, settings = read_json(path), read_json(settings_path)
    beyond = {token["content"] for token in values["added_tokens"] if token["id"] >= num_embeddings}
    if beyond:
        logger.info("tokens without an embedding are left out of the tokenizer: %s", ", ".join(sorted(beyond)))
        values["added_tokens"] = [token for token in values["added_tokens"] if token["content"] not in beyond]
        write_json(path, values)
        write_json(
            settings_path,
            {key: value for key, value in settings.items() if not (isinstance(value, str) and value in beyond)},
        )


def _dequantised() -> dict[str, Any]:
    """Return the argument that makes transformers load plain weights.

    Versions with GgufConfig otherwise keep them packed where they have kernels for it; earlier ones know nothing else.
    """
    settings = getattr(transformers, "GgufConfig", None)
    return {} if settings is None else {"quantization_config": settings(dequantize=True)}


def _plain_copy(loaded: Any, config: Any, *, dtype: torch.dtype) -> Any:
    """Return a model with the same weights that can be saved: one loaded from GGUF refuses `save_pretrained`.

    The weights are shared, not copied.
    """
    config = type(config).from_dict({name: v for name, v in config.to_dict().items() if name != "quantization_config"})
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(config, dtype=dtype)
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    return plain
