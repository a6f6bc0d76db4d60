"""Choose which parameters of a model are trained: all, all but frozen ones, or LoRA adapters; merge and save adapters.

Adapters are injected into the transformers model, which keeps its class and its parameter names; only a layer with an
adapter becomes `NAME.base_layer`. Merging restores every name.

Not covered: an adapter on the head, whose weight goes directly into the fused loss; adapters on embeddings.
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from versatune_ds.config import LoraConfig, ModelConfig
from versatune_ds.domains import nearest_name
from versatune_ds.model.weight_files import Weight, remove_earlier_weights, save_tensors

_ADAPTER = "default"
_LINEAR = (nn.Linear, Conv1D)
"""Layers that can have an adapter; Conv1D is GPT-2's linear layer, its weight transposed."""


def choose_what_is_trained(causal_lm: Any, model: ModelConfig) -> None:
    """Freeze parameters or add adapters in place, according to the recipe's model section.

    Raises:
        ValueError: If a pattern or a layer's name matches nothing, no parameter remains to train, or peft is missing.
    """
    if model.lora is not None:
        add_adapters(causal_lm, model.lora)
    if model.freeze:
        freeze_parameters(causal_lm, model.freeze)


def freeze_parameters(model: nn.Module, patterns: tuple[str, ...]) -> None:
    """Stop training the parameters whose names match one of the patterns (`*` and `?` as in file names).

    Raises:
        ValueError: If a pattern matches no parameter, or all are frozen.
    """
    named = dict(model.named_parameters(remove_duplicate=False))  # a tied weight matches under each of its names
    for pattern in patterns:
        matched = fnmatch.filter(named, pattern)
        if not matched:
            raise ValueError(f"model.freeze: {pattern!r} matches no parameter; {nearest_name(pattern, list(named))}")
        for name in matched:
            named[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in named.values()):
        raise ValueError(f"model.freeze: {', '.join(patterns)} freeze every parameter; leave some to train")


def add_adapters(causal_lm: Any, lora: LoraConfig) -> None:
    """Give layers of a transformers model LoRA or DoRA adapters in place, and freeze everything else.

    An adapter starts as zero, so the model computes what it did before.

    Raises:
        ValueError: If peft is not installed, a layer's name matches nothing, or the head would get an adapter.
    """
    peft = _load_peft()
    _check_target_modules(causal_lm, lora)
    # Not causal_lm.add_adapter, which does the same: in transformers 5.24 it requires peft 0.22.
    peft.inject_adapter_in_model(
        peft.LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules="all-linear" if lora.target_modules is None else list(lora.target_modules),
            use_dora=lora.use_dora,
            use_rslora=lora.use_rslora,
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in causal_lm.modules()),
            task_type="CAUSAL_LM",
        ),
        causal_lm,
        adapter_name=_ADAPTER,
    )


def merged_weights(causal_lm: nn.Module, weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """Return a model's weights with its adapters merged, under their original names; nothing is read yet.

    Args:
        causal_lm: The model with adapters; it may be on the device `meta`.
        weights: Its weights by name, the adapters' among them.
    """
    merged = dict(weights)
    layer_class = _load_peft().tuners.tuners_utils.BaseTunerLayer
    layers = {name: module for name, module in causal_lm.named_modules() if isinstance(module, layer_class)}
    for name, layer in layers.items():
        of_layer = {part: merged.pop(f"{name}.{part}") for part in layer.state_dict()}
        for part, weight in of_layer.items():
            if part.startswith("base_layer."):
                merged[f"{name}.{part.removeprefix('base_layer.')}"] = weight
        merged[f"{name}.weight"] = _MergedWeight(layer, of_layer)
    return merged


class _MergedWeight:
    """The weight of one layer merged with its adapter, in fp32, read when needed."""

    dtype = torch.float32

    def __init__(self, layer: nn.Module, weights: Mapping[str, Weight]) -> None:
        self.shape = weights["base_layer.weight"].shape
        self._layer = layer
        self._weights = weights

    def contiguous(self) -> torch.Tensor:
        """Read and merge the weight; only this layer is in memory."""
        layer = copy.deepcopy(self._layer)
        layer.load_state_dict({part: w.contiguous().float() for part, w in self._weights.items()}, assign=True)
        layer.merge()
        return layer.get_base_layer().weight.detach().contiguous()


def save_adapters(causal_lm: Any, folder: Path, *, base_model: str | None) -> None:
    """Write the adapters alone, in the format of `peft.PeftModel.from_pretrained(base, folder)`.

    Args:
        causal_lm: A model with adapters.
        folder: Folder to write, created if missing; weights of an earlier export are removed.
        base_model: Folder or Hub name of the model that the adapters belong to; it is stored in their config.
    """
    remove_earlier_weights(folder)
    config = causal_lm.peft_config[_ADAPTER]
    config.base_model_name_or_path, config.inference_mode = base_model, True
    config.save_pretrained(folder)
    weights = _load_peft().get_peft_model_state_dict(causal_lm, adapter_name=_ADAPTER, save_embedding_layers=False)
    named = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in weights.items()}
    save_tensors(named, folder / "adapter_model.safetensors")


def _check_target_modules(causal_lm: Any, lora: LoraConfig) -> None:
    """Check that each name given is the end of a linear layer's name, and none is the head's.

    peft itself accepts the names if one of them matches.
    """
    head = causal_lm.get_output_embeddings()
    linear = {name: module for name, module in causal_lm.named_modules() if isinstance(module, _LINEAR)}
    for target in lora.target_modules or ():
        matched = [module for name, module in linear.items() if f".{name}".endswith(f".{target}")]
        if not matched:
            known = sorted({name.rpartition(".")[2] for name, module in linear.items() if module is not head})
            raise ValueError(
                f"model.lora.target_modules: {target!r} matches no linear layer; {nearest_name(target, known)}"
            )
        if any(module is head for module in matched):
            raise ValueError(
                f"model.lora.target_modules: {target!r} is the head, whose weight goes directly into the fused loss "
                "and can have no adapter; leave it out"
            )


def _load_peft() -> Any:
    """Return the peft library.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        import peft
        import peft.tuners.tuners_utils
    except ImportError:
        raise ValueError("model.lora: the package peft is missing; pip install -e '.[lora]'") from None
    return peft
