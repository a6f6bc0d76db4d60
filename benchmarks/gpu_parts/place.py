"""Where a part runs: its size, its device, its working folder and the time it has."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[2]
Size = Literal["full", "small"]

PEAK_FLOPS = {"H100 80GB HBM3": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bf16 peak of a device by a part of its name, from the vendor's data sheets (SXM versions)."""

LLAMA_1B: Mapping[str, Any] = {
    "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True,
    "vocab_size": 128256, "max_position_embeddings": 8192,
}  # fmt: skip
"""The shape of Llama 3.2 1B."""
LLAMA_TINY: Mapping[str, Any] = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True, "vocab_size": 2048,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Size, device and folder of a part.

    Attributes:
        size: `full` or `small`.
        device: "cuda" or "cpu".
        folder: Working folder that all parts of a call share: prepared data and runs.
        seconds: Time this part has.
        started: When its process started, by the monotonic clock.
    """

    size: Size
    device: str
    folder: Path
    seconds: float = 600.0
    started: float = field(default_factory=time.monotonic)

    @property
    def is_small(self) -> bool:
        """Return whether the small size was asked for."""
        return self.size == "small"

    @property
    def llama(self) -> Mapping[str, Any]:
        """Return the config of the model that is trained."""
        return LLAMA_TINY if self.is_small else LLAMA_1B

    @property
    def llama_name(self) -> str:
        """Return its name in titles."""
        return "a tiny Llama" if self.is_small else "Llama 1B"

    def seconds_left(self, *, reserve: float = 5.0) -> float:
        """Return the seconds until this part is stopped, less a reserve for writing down what it has."""
        return max(1.0, self.started + self.seconds - reserve - time.monotonic())


def peak_flops(device_name: str) -> float | None:
    """Return a device's dense bf16 peak in FLOP/s; None for an unknown device, whose share is not shown."""
    return next((peak for part, peak in PEAK_FLOPS.items() if part in device_name), None)


def num_llama_parameters(shape: Mapping[str, Any]) -> int:
    """Return the parameters of a Llama by its config.

    Example: Llama 3.2 1B has 128256 * 2048 of the tied embedding, 16 layers of 2 * 2048^2 (q, o) + 2 * 2048 * 512
    (k, v) + 3 * 2048 * 8192 + 2 * 2048 (norms), and 2048 of the last norm: 1,235,814,400.
    """
    hidden, heads = shape["hidden_size"], shape["num_attention_heads"]
    head_size = shape.get("head_dim", hidden // heads)
    attention = 2 * hidden * head_size * (heads + shape["num_key_value_heads"])
    layer = attention + 3 * hidden * shape["intermediate_size"] + 2 * hidden
    embeddings = shape["vocab_size"] * hidden * (1 if shape["tie_word_embeddings"] else 2)
    return embeddings + shape["num_hidden_layers"] * layer + hidden


def share_of_peak(tokens_per_second: float, *, shape: Mapping[str, Any], device_name: str) -> float | None:
    """Return the share of a device's peak that 6 FLOPs a parameter and token make (6N); None for an unknown device.

    Example: 35,750 tokens/s of Llama 3.2 1B on an H100 are 6 * 1.2358e9 * 35750 = 265e12 FLOP/s: 0.268.
    """
    peak = peak_flops(device_name)
    return None if peak is None else round(6 * num_llama_parameters(shape) * tokens_per_second / peak, 4)


def device_name(device: str) -> str:
    """Return the name of the device that is measured."""
    if device != "cuda":
        return "cpu"
    import torch

    return torch.cuda.get_device_name()
