"""Write a checkpoint's weights as safetensors files, one file at a time.

A weight is only read when its file is written: from the partitions of all ranks, then converted, written and freed. So
the memory needed is that of one file, whatever the model's size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.torch import save_file

WEIGHTS_FILE = "model.safetensors"
DEFAULT_MAX_SHARD_SIZE = "5GB"


class Weight(Protocol):
    """A weight that may still be on disk; every tensor is one."""

    shape: torch.Size
    dtype: torch.dtype

    def contiguous(self) -> torch.Tensor:
        """Read it."""


def write_weights(
    weights: Mapping[str, Weight], *, folder: Path, dtype: torch.dtype, max_shard_size: str = DEFAULT_MAX_SHARD_SIZE
) -> list[str]:
    """Write weights as `model.safetensors`, or as several files with an index; earlier weights are removed.

    Args:
        weights: By name, tied weights under one name only.
        folder: Existing folder.
        dtype: Precision of floating-point weights; others keep theirs.
        max_shard_size: Maximum size of a file, such as 500MB or 5GB; a larger weight gets a file of its own.

    Returns:
        The names of the files.

    Raises:
        ValueError: If the size cannot be read.
    """
    try:
        plan = split_state_dict_into_shards_factory(
            dict(weights),
            get_storage_size=lambda weight: weight.shape.numel() * _written_dtype(weight, dtype).itemsize,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=max_shard_size,
        )
    except (ValueError, KeyError):
        raise ValueError(f"--max-shard-size: {max_shard_size!r}: expected a size such as 500MB or 5GB") from None
    remove_earlier_weights(folder)
    for file_name, names in plan.filename_to_tensors.items():
        _write_file(folder / file_name, {name: weights[name] for name in names}, dtype=dtype)
    if plan.is_sharded:
        index: dict[str, Any] = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        text = json.dumps(index, indent=1, sort_keys=True) + "\n"
        (folder / f"{WEIGHTS_FILE}.index.json").write_text(text, encoding="utf-8")
    return list(plan.filename_to_tensors)


def remove_earlier_weights(folder: Path) -> None:
    """Delete the weights or adapters of an earlier export: transformers could load them instead of the new ones."""
    named = (f"{WEIGHTS_FILE}.index.json", "adapter_config.json", "adapter_model.safetensors")
    parts = folder.glob("model-[0-9]*-of-[0-9]*.safetensors")
    for path in (folder / WEIGHTS_FILE, *parts, *(folder / name for name in named)):
        path.unlink(missing_ok=True)


def _write_file(path: Path, weights: Mapping[str, Weight], *, dtype: torch.dtype) -> None:
    """Read the weights of one file and write it; afterwards none of them is in memory."""
    tensors = {}
    for name, weight in weights.items():
        tensor = weight.contiguous()
        tensors[name] = tensor.to(_written_dtype(weight, dtype)).clone(memory_format=torch.contiguous_format)
    save_tensors(tensors, path)


def save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write one safetensors file, with the permissions of the umask.

    safetensors writes to a temporary file of mode 0600 and renames it, so nobody else could load a model exported to a
    shared folder.
    """
    path.unlink(missing_ok=True)
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata={"format": "pt"})
    path.chmod(mode)


def _written_dtype(weight: Weight, dtype: torch.dtype) -> torch.dtype:
    """Return the precision in which a weight is written."""
    return dtype if weight.dtype.is_floating_point else weight.dtype
