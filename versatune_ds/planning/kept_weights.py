"""Read the weights that `versatune reference` kept, and write weighted sums of them into one model in memory.

theta(w) = theta_0 + sum_i w_i (theta_i - theta_0). Files are memory-mapped and read one tensor at a time, so that
memory for one model suffices; on a GPU with room for all of them they are copied there once.

Source: MergeMix, arXiv 2601.17858.

Shape legend: **K** domains.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from versatune_ds.log import first_line

logger = logging.getLogger(__name__)

_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_PREFIX = "base_model.model."
_LOWEST_WEIGHT = 1e-9
"""A smaller weight is one that rounding made: its model is not read."""


class KeptWeights(Protocol):
    """What one domain's run ended with."""

    is_change: bool
    """Whether `read` returns changes of the base model's weights (adapters) and not complete ones."""

    def names(self) -> frozenset[str]:
        """Return the names of the weights, as the model has them."""

    def read(self, name: str) -> torch.Tensor:
        """Return a weight, or its change."""


class FullWeights:
    """A complete model in safetensors files."""

    is_change = False

    def __init__(self, folder: Path) -> None:
        self._file_of = {name: file for file in map(_open, _weight_files(folder)) for name in file.keys()}  # noqa: SIM118

    def names(self) -> frozenset[str]:
        """Return the names of the weights."""
        return frozenset(self._file_of)

    def read(self, name: str) -> torch.Tensor:
        """Return a weight; its memory is that of the file."""
        return self._file_of[name].get_tensor(name)


class AdapterWeights:
    """LoRA adapters in peft's format; a layer's change is scale * B @ A.

    Raises:
        ValueError: For DoRA, whose layers are not a sum of the base model's weight and a change.
    """

    is_change = True

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / _ADAPTER_CONFIG).read_text(encoding="utf-8"))
        if config.get("use_dora"):
            raise ValueError("model.lora.use_dora: DoRA adapters cannot be averaged; plan with --planner transfer")
        rank = int(config["r"])
        self._scale = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
        self._is_transposed = bool(config.get("fan_in_fan_out"))
        self._file = _open(folder / "adapter_model.safetensors")
        suffix = ".lora_A.weight"
        self._layers = {
            f"{name.removeprefix(_ADAPTER_PREFIX).removesuffix(suffix)}.weight": name.removesuffix(suffix)
            for name in self._file.keys()  # noqa: SIM118
            if name.endswith(suffix)
        }

    def names(self) -> frozenset[str]:
        """Return the names of the weights that have an adapter."""
        return frozenset(self._layers)

    def read(self, name: str) -> torch.Tensor:
        """Return the change of a weight, float32."""
        down, up = (self._file.get_tensor(f"{self._layers[name]}.lora_{part}.weight").float() for part in "AB")
        change = self._scale * (up @ down)
        return change.T if self._is_transposed else change


def open_kept_weights(folder: Path) -> KeptWeights:
    """Return the weights in a folder that `versatune reference` wrote.

    Raises:
        ValueError: If they cannot be read, or are DoRA adapters.
    """
    try:
        return AdapterWeights(folder) if (folder / _ADAPTER_CONFIG).is_file() else FullWeights(folder)
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read its weights: {first_line(error)}") from None


def weight_files_of(folder: Path) -> list[Path]:
    """Return all files that decide what a folder's model computes."""
    return sorted([*folder.glob("*.safetensors"), *folder.glob("*config.json")])


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} has no model.safetensors")
    return files


def _open(path: Path) -> Any:
    return safe_open(path, framework="pt")


class OtherWeightsError(ValueError):
    """Kept weights of another model.

    Attributes:
        number: Which ones.
    """

    def __init__(self, reason: str, *, number: int) -> None:
        super().__init__(reason)
        self.number = number


class MergedWeights:
    """Write weighted sums of kept weights into a model.

    Args:
        causal_lm: The model in memory, with the base model's weights; without adapters.
        kept: The weights of each domain's run, K; None for a domain without one, which counts as the base model.

    Raises:
        OtherWeightsError: If the names or shapes of kept weights are not the model's.
    """

    def __init__(self, causal_lm: torch.nn.Module, kept: Sequence[KeptWeights | None]) -> None:
        self._targets: dict[str, torch.Tensor] = causal_lm.state_dict(keep_vars=True)
        self._kept = list(kept)
        for number, weights in enumerate(kept):
            if weights is not None:
                self._check(weights, number=number)
        names = sorted(set().union(*(weights.names() for weights in kept if weights is not None)))
        self._names = [name for name in names if self._targets[name].is_floating_point()]
        # Sums of complete models on the simplex need no base model: its share is 1 - sum_i w_i = 0.
        needs_base = any(weights is None or weights.is_change for weights in kept)
        self._base = {name: self._targets[name].detach().clone() for name in self._names} if needs_base else {}
        self._on_device = self._copies_on_gpu()

    @torch.no_grad()
    def set_mixture(self, weights_K: Sequence[float]) -> None:
        """Set the model's weights to those of a mixture [K] on the simplex, summed in float32."""
        parts = [
            (float(weight), number)
            for number, weight in enumerate(weights_K)
            if weight > _LOWEST_WEIGHT and self._kept[number] is not None
        ]
        of_base = 1.0 - sum(weight for weight, number in parts if not self._kept[number].is_change)
        for name in self._names:
            target = self._targets[name]
            total = torch.zeros_like(target, dtype=torch.float32)
            if self._base and of_base > _LOWEST_WEIGHT:
                total.add_(self._base[name].float(), alpha=of_base)
            for weight, number in parts:
                total.add_(self._read(name, number), alpha=weight)
            target.copy_(total)

    def _read(self, name: str, number: int) -> torch.Tensor:
        tensor = self._on_device.get((name, number))
        if tensor is None:
            tensor = self._kept[number].read(name).to(self._targets[name].device)
        return tensor.float()

    def _check(self, weights: KeptWeights, *, number: int) -> None:
        """Raise OtherWeightsError unless a domain's weights are the model's, or adapters of some of its layers."""
        names = weights.names()
        unknown = sorted(name for name in names if name not in self._targets)
        covered = {id(self._targets[name]) for name in names if name in self._targets}
        missing = [] if weights.is_change else [n for n, t in self._targets.items() if id(t) not in covered]
        known = [name for name in names if name in self._targets]
        other = sorted(name for name in known if weights.read(name).shape != self._targets[name].shape)
        for what, wrong in (("unknown", unknown), ("missing", missing), ("of another shape", other)):
            if wrong:
                raise OtherWeightsError(f"{len(wrong)} weights are {what}, such as {wrong[0]}", number=number)

    def _copies_on_gpu(self) -> dict[tuple[str, int], torch.Tensor]:
        """Return all kept weights on the model's GPU if they fit into half of its free memory, else none of them."""
        device = next(iter(self._targets.values())).device
        complete = [n for n, weights in enumerate(self._kept) if weights is not None and not weights.is_change]
        if device.type != "cuda" or not complete:
            return {}
        wanted = len(complete) * sum(self._targets[name].nbytes for name in self._names)
        free = torch.cuda.mem_get_info(device)[0]
        if wanted > free / 2:
            logger.info(
                "kept models are read from the disk: %.1f GB, of the GPU %.1f GB are free", wanted / 1e9, free / 1e9
            )
            return {}
        return {(name, n): self._kept[n].read(name).to(device) for n in complete for name in self._names}
