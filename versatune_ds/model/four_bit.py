"""Load the linear layers of a saved model in 4 bits, for adapters to be trained beside them (QLoRA).

NF4 with double quantisation, by bitsandbytes: each block of 64 weights shares a scale, and 256 scales are in 8 bits
with one fp32 scale of their own. A product dequantises its layer's weight, computes in the precision of training, and
frees it. Embeddings, norms and the head keep that precision, so the fused head loss works as always.

Source: QLoRA, arXiv 2305.14314, sections 3 and 4.

Not covered: experts, which transformers stores as one tensor a layer and bitsandbytes leaves as they are.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

logger = logging.getLogger(__name__)

_BLOCK = 64
"""Weights that share a scale."""

_NESTED_BLOCK = 256
"""Scales of blocks that share a scale of their own."""

_TABLE_BYTES = 4 * (16 + 256)
"""A layer's tables of the 16 values of a weight and the 256 of a scale, fp32."""


def check_four_bit_installed() -> None:
    """Check that the libraries that quantise are there.

    Raises:
        ValueError: With the extra to install.
    """
    missing = [library for library in ("bitsandbytes", "accelerate") if find_spec(library) is None]
    if missing:
        raise ValueError(f"model.load_in_4bit: needs {' and '.join(missing)}; pip install -e '.[qlora]'")


def check_is_not_quantised(config: Any, *, name: str) -> None:
    """Check that a saved model's own weights are not quantised: theirs may be another quantisation than asked for.

    Raises:
        ValueError: If its config says so.
    """
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(
            f"model.load_in_4bit: the weights of {name} are quantised already (quantization_config of its "
            "config.json); give the model they were made from"
        )


def four_bit_config(dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return transformers' setting that quantises linear layers while they are loaded, but not the head."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def keep_packed_form(causal_lm: nn.Module) -> None:
    """Keep a CPU's inference kernel from repacking weights in place at the first pass without gradients.

    bitsandbytes 0.50 does so on CPUs with avx512_bf16. It needs layers of multiples of 64 inputs, and rounds otherwise
    than the passes with gradients: held-out losses would not be those of the model that is trained.
    """
    for module in causal_lm.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def describe_four_bit(causal_lm: nn.Module) -> str | None:
    """Return how many of a loaded model's weights are in 4 bits; None where none is."""
    quantised = [part for part in causal_lm.parameters() if hasattr(part, "quant_state")]
    if not quantised:
        return None
    count = sum(part.quant_state.shape.numel() for part in quantised)
    return f"{count / 1e6:.1f} M weights of {len(quantised)} linear layers in 4 bits (NF4, double quantisation)"


def quantisable_sizes(causal_lm: Any) -> list[int]:
    """Return the number of weights of each layer that would be loaded in 4 bits, of a model that is not quantised.

    An adapter's own layers are small matrices beside them and do not count.
    """
    head = causal_lm.get_output_embeddings()
    linear = {name: part for name, part in causal_lm.named_modules() if isinstance(part, (nn.Linear, Conv1D))}
    return [part.weight.numel() for name, part in linear.items() if part is not head and ".lora_" not in name]


def four_bit_bytes(num_weights: int) -> float:
    """Return the bytes of one layer's weights in 4 bits, with the scales of their blocks and its tables.

    Worked example: 2^20 weights are 524,288 bytes, 16,384 scales of one byte, 64 scales of four bytes, and 1,088 bytes
    of tables: 0.517 bytes a weight.
    """
    num_blocks = -(-num_weights // _BLOCK)
    num_nested = -(-num_blocks // _NESTED_BLOCK)
    return num_weights / 2 + num_blocks + 4 * num_nested + _TABLE_BYTES
