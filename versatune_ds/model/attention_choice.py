"""Choose how attention is computed, by what the machine and the model allow, and say why.

`model.attention: auto` takes the first of `_PREFERENCE` that can work here; the reason names what kept the earlier ones
from working. A name that cannot work here is refused in one line.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import os
import sys
from dataclasses import dataclass
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from versatune_ds.distributed.gpus import is_cpu_meant
from versatune_ds.model.attention import VARLEN, varlen_parameters
from versatune_ds.model.sizes import sizes_of

_PREFERENCE = ("varlen", "flash_attention_3", "flash_attention_2", "flex_attention", "sdpa", "eager")
_DROPOUTS = ("attention_dropout", "attn_pdrop", "attn_dropout", "attention_probs_dropout_prob")
_PACKAGES = {
    "flash_attention_2": "flash-attn",
    "flash_attention_3": "flash-attn-3",
    "kernels": "kernels",
    "triton": "triton",
}
"""What needs a package -> the name under which that is installed."""

_OLDEST_GPU, _HOPPER = (8, 0), (9, 0)
"""Compute capabilities: of the oldest GPU that flash attention knows, and of the newest that flash-attention 3 does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What decides which implementations run on a device."""

    device_type: str
    """cpu or cuda."""
    precision: str
    """fp32, bf16 or fp16."""
    capability: tuple[int, int] | None = None
    """Compute capability of the GPU; None where it is not known, as on the login node of a cluster."""
    varlen: frozenset[str] = frozenset()
    """Parameters of torch's varlen_attn, which differ by version; empty where there is none."""
    packages: frozenset[str] = frozenset()
    """Keys of `_PACKAGES` that are installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionNeeds:
    """What a model asks of its attention, from its config and its class."""

    head_dim: int | None = None
    """Size of the largest head of queries and keys; None where the config does not state it."""
    has_window: bool = False
    has_softcap: bool = False
    """Whether attention scores are bounded, as in Gemma 2."""
    has_sinks: bool = False
    """Whether every head has a learned score that takes part in the softmax, as in gpt-oss."""
    dropout: float = 0.0
    is_causal: bool = True
    supports: frozenset[str] = frozenset({"sdpa"})
    """Of sdpa, flash, flex, and lengths: whether the model's code passes unknown arguments on to its attention."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionChoice:
    """An implementation and why it is used."""

    name: str
    """As `model.attention` names it."""
    reason: str

    @property
    def registered_name(self) -> str:
        """Return the name in transformers' interface."""
        return VARLEN if self.name == "varlen" else self.name

    def __str__(self) -> str:
        """Return the line for the log."""
        return f"{self.name} ({self.reason})"


def choose_attention(wanted: str, *, needs: AttentionNeeds, machine: Machine) -> AttentionChoice:
    """Return the implementation that a model uses on a machine.

    Args:
        wanted: `model.attention`.
        needs: What the model asks for.
        machine: Where it runs.

    Raises:
        ValueError: If `wanted` names one that cannot work here; the message says why and what can.
    """
    if wanted != "auto":
        obstacle = _obstacle(wanted, needs=needs, machine=machine)
        if obstacle is None:
            return AttentionChoice(name=wanted, reason="as model.attention says")
        other = choose_attention("auto", needs=needs, machine=machine).name
        raise ValueError(f"model.attention: {wanted} is not supported here ({obstacle}); use {other} or auto")
    if machine.device_type == "cpu":
        candidates, passed_over = ("sdpa", "eager"), ["on a CPU"]
    else:
        candidates, passed_over = _PREFERENCE, []
    for name in candidates:
        obstacle = _obstacle(name, needs=needs, machine=machine)
        if obstacle is None:
            return AttentionChoice(name=name, reason="; ".join(passed_over) or "the fastest; no mask, no package")
        passed_over.append(f"no {name}: {obstacle}")
    raise AssertionError("eager attention works everywhere")


def check_attention_device(wanted: str, *, device_type: str) -> None:
    """Check what the name of an implementation alone tells: whether it needs a GPU where there is none.

    Raises:
        ValueError: If it does.
    """
    if device_type == "cpu" and wanted not in ("auto", "sdpa", "eager"):
        choose_attention(wanted, needs=AttentionNeeds(), machine=Machine(device_type="cpu", precision="fp32"))


def _obstacle(name: str, *, needs: AttentionNeeds, machine: Machine) -> str | None:
    """Return why an implementation cannot be used; None where it can."""
    if name == "eager":
        return None
    if name == "sdpa":
        return None if "sdpa" in needs.supports else "the model does not support it"
    if machine.device_type == "cpu":
        return "needs a GPU"
    if name == "flex_attention":
        return _first(
            ("flex" not in needs.supports, "the model does not support it"),
            ("triton" not in machine.packages, "needs Triton"),
            (needs.dropout > 0, f"has no dropout, and the model's is {needs.dropout:g}"),
            (needs.head_dim is not None and needs.head_dim < 16, f"needs heads of 16 or more, here {needs.head_dim}"),
        )
    if (shared := _obstacle_to_lengths(needs, machine)) is not None:
        return shared
    return _obstacle_to_varlen(needs, machine) if name == "varlen" else _obstacle_to_flash(name, needs, machine)


def _first(*cases: tuple[bool, str]) -> str | None:
    """Return the text of the first case that holds."""
    return next((text for holds, text in cases if holds), None)


def _obstacle_to_lengths(needs: AttentionNeeds, machine: Machine) -> str | None:
    """Return why no variable-length kernel (varlen, flash attention) can be used."""
    capability = machine.capability or _OLDEST_GPU
    return _first(
        (machine.precision == "fp32", "needs bf16 or fp16, not fp32"),
        (capability < _OLDEST_GPU, f"needs compute capability 8.0, this GPU has {capability[0]}.{capability[1]}"),
        (not {"flash", "lengths"} <= needs.supports, "the model cannot pass it the lengths of packed examples"),
        (not needs.is_causal, "the model's attention is not causal"),
        (needs.head_dim is not None and needs.head_dim > 256, f"heads of at most 256, here {needs.head_dim}"),
    )


def _obstacle_to_varlen(needs: AttentionNeeds, machine: Machine) -> str | None:
    """Return why torch's own variable-length kernel cannot be used, apart from `_obstacle_to_lengths`."""
    return _first(
        (not machine.varlen, "needs torch 2.10 or newer, with flash attention for NVIDIA GPUs"),
        (needs.head_dim is not None and needs.head_dim % 8 > 0, f"heads of a multiple of 8, here {needs.head_dim}"),
        (needs.has_softcap, "cannot bound scores (attn_logit_softcapping)"),
        (needs.has_sinks, "has no attention sinks"),
        (needs.dropout > 0, f"has no dropout, and the model's is {needs.dropout:g}"),
        (needs.has_window and "window_size" not in machine.varlen, "sliding windows need torch 2.11"),
    )


def _obstacle_to_flash(name: str, needs: AttentionNeeds, machine: Machine) -> str | None:
    """Return why flash attention of a package or of the Hub cannot be used, apart from `_obstacle_to_lengths`."""
    is_version_3 = name == "flash_attention_3"
    is_on_hub = "/" in name
    package = _PACKAGES.get(name, _PACKAGES["kernels"])
    capability = machine.capability or _OLDEST_GPU
    return _first(
        ((name if name in _PACKAGES else "kernels") not in machine.packages, f"package {package} is not installed"),
        (is_version_3 and capability >= (_HOPPER[0] + 1, 0), "is for compute capability 8 and 9"),
        (is_version_3 and needs.dropout > 0, f"has no dropout, and the model's is {needs.dropout:g}"),
        # transformers leaves the sinks out where a kernel does not know them (5.24, _process_flash_attention_kwargs).
        (needs.has_sinks and not is_on_hub, "has no attention sinks"),
    )


def machine_here(precision: str) -> Machine:
    """Return what this process's device can do."""
    is_on_cpu = is_cpu_meant(os.environ) or not torch.cuda.is_available()
    return machine_of("cpu" if is_on_cpu else "cuda", precision=precision)


def machine_of(device_type: str, *, precision: str) -> Machine:
    """Return what a device can do with the packages installed here, whether or not this machine has such a device."""
    has_gpu = device_type == "cuda" and torch.cuda.is_available()
    # A torch without CUDA, as on a login node, says nothing about the one on the nodes.
    has_kernel = not has_gpu or (torch.version.hip is None and torch.backends.cuda.is_flash_attention_available())
    return Machine(
        device_type=device_type,
        precision=precision,
        capability=torch.cuda.get_device_capability() if has_gpu else None,
        varlen=varlen_parameters() if has_kernel else frozenset(),
        packages=frozenset(name for name, package in _PACKAGES.items() if _is_installed(package)),
    )


def _is_installed(package: str) -> bool:
    """Return whether a package is installed, without importing it."""
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def attention_needs(config: Any, *, model_class: type | None = None) -> AttentionNeeds:
    """Return what a model asks of its attention.

    Args:
        config: A transformers config.
        model_class: Its class; by default the one that transformers would make. Of code that comes with a model nothing
            is known, and sdpa is assumed to work.
    """
    text = config.get_text_config(decoder=True)
    values = text.to_dict()
    window = values.get("sliding_window") if values.get("use_sliding_window", True) else None
    split_head = (values.get("qk_nope_head_dim") or 0) + (values.get("qk_rope_head_dim") or 0)  # latent attention
    heads = [sizes_of(config).head_dim, values.get("global_head_dim"), values.get("qk_head_dim"), split_head]
    model_class = model_class or _class_of(config)
    return AttentionNeeds(
        head_dim=max((head for head in heads if head), default=None),
        has_window=bool(window),
        has_softcap=bool(values.get("attn_logit_softcapping")),
        has_sinks=model_class is not None and _passes_sinks(model_class),
        dropout=max(float(values.get(name) or 0.0) for name in _DROPOUTS),
        is_causal=not values.get("use_bidirectional_attention"),
        supports=AttentionNeeds().supports if model_class is None else _supported_by(model_class),
    )


def _class_of(config: Any) -> Any:
    """Return the class that transformers makes of a config; None where the code comes with the model."""
    try:
        found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except KeyError:
        return None
    return found[0] if isinstance(found, tuple) else found


def _supported_by(model_class: Any) -> frozenset[str]:
    """Return what a transformers class declares to support."""
    flags = {
        "sdpa": model_class._supports_sdpa,
        "flash": model_class._supports_flash_attn,
        "flex": model_class._supports_flex_attn,
        "lengths": model_class._supports_attention_backend,
    }
    return frozenset(name for name, is_supported in flags.items() if is_supported)


def _passes_sinks(model_class: type) -> bool:
    """Return whether a model's code passes attention sinks (`s_aux`); no key of its config says so."""
    try:
        return "s_aux=" in inspect.getsource(sys.modules[model_class.__module__])
    except (OSError, TypeError):
        return False  # no source: varlen_attention refuses them when it is called


def describe_attention(causal_lm: Any, *, wanted: str, machine: Machine) -> str:
    """Return which implementation a model uses on a machine, and why."""
    needs = attention_needs(causal_lm.config, model_class=type(causal_lm))
    return str(choose_attention(wanted, needs=needs, machine=machine))
