"""Check that the weights in a model's files are those its config asks for, before and after loading.

transformers fills missing weights at random and drops unexpected ones, with only a table in the log: another model than
the given one would be trained. Names and shapes are read from the files' headers, and transformers' own loader maps
them onto a model on the device `meta`, so that renamed, merged and tied weights are treated as it does.

Not covered before loading: quantised models, and models of the Hub that are not downloaded yet.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from transformers.utils import logging as transformers_logging

from versatune_ds.log import SHARED, first_line

logger = logging.getLogger(__name__)

_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""In the order in which transformers looks for them."""

_COMPUTED = re.compile(r"(inv_freq|position_ids|attn\.bias|masked_bias)$")
"""Buffers that a model computes itself where its files lack them."""

_OTHER_HEADS = re.compile(r"^(score|classifier|classification_head|reward_head|value_head|v_head|mtp)\.")
"""Weights that are no part of the language model: of reward models, and of multi-token prediction."""

_NUM_NAMES = 3


def check_saved_weights(name: str, *, model_class: Any, config: Any) -> bool:
    """Compare the names and shapes of a saved model's weights with those of its class, without reading them.

    Args:
        name: Folder or Hub name.
        model_class: The transformers class that will load it.
        config: Its config.

    Returns:
        Whether it was possible: False for a model of the Hub that is not downloaded, a quantised one, or without
        accelerate.

    Raises:
        ValueError: If weights are missing, unexpected or of another shape, or a file cannot be read.
    """
    if getattr(config, "quantization_config", None) is not None or find_spec("accelerate") is None:
        return False
    headers = _headers_of(name)
    if headers is None:
        return False
    with _quiet_loading():
        try:
            plain, info = model_class.from_pretrained(
                None,
                config=config,
                state_dict=headers,
                device_map={"": "meta"},
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
        except RuntimeError as error:  # experts of unequal shapes cannot be merged
            raise ValueError(_mismatch_message(name, model_class, str(error))) from None
    check_loading_info(name, info, causal_lm=plain)
    return True


def check_loading_info(name: str, info: Mapping[str, Iterable[Any]], *, causal_lm: Any) -> None:
    """Check the report that transformers makes of a model's weights.

    Args:
        name: Folder or Hub name.
        info: What `from_pretrained(output_loading_info=True)` returned beside the model.
        causal_lm: The model.

    Raises:
        ValueError: If weights are missing, unexpected or of another shape; with their number and first names.
    """
    tied = getattr(causal_lm, "all_tied_weights_keys", None) or {}  # one weight under two names is missing once
    absent = {key for key in info["missing_keys"] if not _COMPUTED.search(key)}
    missing = sorted(key for key in absent if tied.get(key) not in absent)
    unexpected = sorted(info["unexpected_keys"])
    of_other_heads = [key for key in unexpected if _OTHER_HEADS.search(key)]
    unexpected = [key for key in unexpected if key not in of_other_heads]
    misshapen = sorted(f"{key} {list(found)} for {list(wanted)}" for key, found, wanted in info["mismatched_keys"])
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    wrong = [f"{len(keys)} {kind} ({_first_names(keys)})" for kind, keys in kinds.items() if keys]
    if wrong:
        raise ValueError(_mismatch_message(name, type(causal_lm), ", ".join(wrong)))
    if of_other_heads:
        logger.warning(
            "%s: %d of its weights belong to another head and are not loaded: %s",
            name,
            len(of_other_heads),
            _first_names(of_other_heads),
            extra=SHARED,
        )


@contextmanager
def without_load_report() -> Iterator[None]:
    """Keep transformers' table of missing and unexpected weights out of the log; `check_loading_info` reports them."""

    def is_no_report(record: logging.LogRecord) -> bool:
        text = record.getMessage()  # nothing else distinguishes these records from others of the logger
        return "LOAD REPORT" not in text and "seem corrupted" not in text

    source = logging.getLogger("transformers.modeling_utils")
    source.addFilter(is_no_report)
    try:
        yield
    finally:
        source.removeFilter(is_no_report)


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Load without a progress bar and without a report."""
    has_bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with without_load_report():
            yield
    finally:
        if has_bar:
            transformers_logging.enable_progress_bar()


def _mismatch_message(name: str, model_class: Any, reason: str) -> str:
    """Return the error message for a model whose files do not fit its config."""
    return (
        f"model.name_or_path: {name}: its weights are not those of {model_class.__name__} as its config.json describes "
        f"it: {reason}; copy or convert the model again, or give another"
    )


def _first_names(names: list[str]) -> str:
    return ", ".join(names[:_NUM_NAMES]) + (", ..." if len(names) > _NUM_NAMES else "")


def local_weight_files(name: str) -> list[Path]:
    """Return the files from which transformers loads a saved model's weights; empty if they are not on this machine.

    Raises:
        ValueError: If the index of several files is corrupt, or a folder lacks one that it lists.
    """
    path = next((path for file in _WEIGHT_FILES if (path := _local_file(name, file)) is not None), None)
    if path is None or path.suffix != ".json":
        return [] if path is None else [path]
    try:
        parts = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"model.name_or_path: {name}: {path.name} is corrupt; copy the model again") from None
    files = []
    for part in parts:
        file = _local_file(name, part)
        if file is None and Path(name).is_dir():
            raise ValueError(f"model.name_or_path: {name}: {path.name} lists {part}, which is missing; copy it again")
        if file is None:
            return []
        files.append(file)
    return files


def _headers_of(name: str) -> dict[str, torch.Tensor] | None:
    """Return the weights of a saved model as tensors without memory; None if its files are not on this machine."""
    headers: dict[str, torch.Tensor] = {}
    for file in local_weight_files(name):
        headers |= _headers_of_file(file, name=name)
    return headers or None


def _headers_of_file(path: Path, *, name: str) -> dict[str, torch.Tensor]:
    """Return the weights of one file as tensors without memory.

    Raises:
        ValueError: If the file cannot be read.
    """
    try:
        if path.suffix == ".bin":
            return torch.load(path, map_location="meta", weights_only=True, mmap=True)
        with safe_open(path, framework="pt") as file:
            return {key: torch.empty(file.get_slice(key).get_shape(), device="meta") for key in file.keys()}  # noqa: SIM118
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = first_line(error)
        raise ValueError(f"model.name_or_path: {name}: cannot read {path.name}: {reason}; copy it again") from None


def _local_file(name: str, file: str) -> Path | None:
    """Return a file of a folder, or of a Hub model's local copy; None where there is none."""
    if Path(name).is_dir():
        path = Path(name) / file
        return path if path.is_file() else None
    try:
        found = try_to_load_from_cache(name, file)
    except ValueError:  # not a valid Hub name
        return None
    return Path(found) if isinstance(found, str) else None
