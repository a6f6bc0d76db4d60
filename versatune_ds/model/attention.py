"""Choose how attention is computed, and pass it where the packed examples of a micro-batch begin and end.

Attention must not cross from one packed example to the next. sdpa and eager attention learn that from a dense mask
[B,1,T,T], and compute all T x T scores of a row only to drop most of them. Variable-length implementations take the
flattened micro-batch as one sequence of B*T positions and the bounds of its examples, and compute nothing else. The
bounds come from the plan, on the CPU (`data/batch.py`), so no layer waits for the device.

`model.attention: auto` takes the first of `_PREFERENCE` that the machine and the model allow, and says why it passed
over the others. A name that cannot work here is refused in one line.

`varlen` is `torch.nn.attention.varlen.varlen_attn` under transformers' attention interface. No mask function is
registered with it: transformers then makes no mask at all, and does not look for packed examples in the positions,
which would wait for the device at every forward pass (transformers 5.24, `masking_utils._preprocess_mask_arguments`).
Whoever calls it without bounds, such as generation with a cache, gets an error: see `dense_attention`.

Shape legend: **B** rows, **T** tokens per row, **N** = B*T, **H** heads, **D** head size, **S** segments: examples, and
the padding of each row.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AttentionInterface

from versatune_ds.data.batch import segment_bounds
from versatune_ds.distributed.gpus import is_cpu_meant
from versatune_ds.model.sizes import sizes_of

VARLEN = "versatune_varlen"
"""Name of our function in transformers' interface. It is in no saved config: transformers does not write it."""

UNCHECKED_VARLEN = "versatune_unchecked_varlen"
"""The same function for counting bytes only: it ignores what it cannot compute."""

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
        raise ValueError(f"model.attention: {wanted} is not supported here; use {other} ({obstacle})")
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
    shared = _obstacle_to_lengths(needs, machine)
    return shared or (_obstacle_to_varlen if name == "varlen" else _obstacle_to_flash)(name, needs, machine)


def _first(*cases: tuple[bool, str]) -> str | None:
    """Return the text of the first case that holds."""
    return next((text for holds, text in cases if holds), None)


def _obstacle_to_lengths(needs: AttentionNeeds, machine: Machine) -> str | None:
    """Return what keeps every kernel of the flash-attention kind from working."""
    capability = machine.capability or _OLDEST_GPU
    return _first(
        (machine.precision == "fp32", "needs bf16 or fp16, not fp32"),
        (capability < _OLDEST_GPU, f"needs compute capability 8.0, this GPU has {capability[0]}.{capability[1]}"),
        (not {"flash", "lengths"} <= needs.supports, "the model cannot pass it the lengths of packed examples"),
        (not needs.is_causal, "the model's attention is not causal"),
        (needs.head_dim is not None and needs.head_dim > 256, f"heads of at most 256, here {needs.head_dim}"),
    )


def _obstacle_to_varlen(name: str, needs: AttentionNeeds, machine: Machine) -> str | None:
    """Return what keeps torch's own kernel from working, beyond `_obstacle_to_lengths`."""
    return _first(
        (not machine.varlen, "needs torch 2.10 or newer, with flash attention for NVIDIA GPUs"),
        (needs.head_dim is not None and needs.head_dim % 8 > 0, f"heads of a multiple of 8, here {needs.head_dim}"),
        (needs.has_softcap, "cannot bound scores (attn_logit_softcapping)"),
        (needs.has_sinks, "has no attention sinks"),
        (needs.dropout > 0, f"has no dropout, and the model's is {needs.dropout:g}"),
        (needs.has_window and "window_size" not in machine.varlen, "sliding windows need torch 2.11"),
    )


def _obstacle_to_flash(name: str, needs: AttentionNeeds, machine: Machine) -> str | None:
    """Return what keeps a package or a kernel of the Hub from working, beyond `_obstacle_to_lengths`."""
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


def varlen_parameters() -> frozenset[str]:
    """Return the parameters of torch's varlen_attn; empty before torch 2.10.

    torch 2.10 has `is_causal` alone; 2.11 `window_size` and `scale` instead; newer ones also demand `enable_gqa` for
    grouped heads, which the older ones take as they are.
    """
    try:
        from torch.nn.attention import varlen
    except ImportError:
        return frozenset()
    return frozenset(inspect.signature(varlen.varlen_attn).parameters)


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


def register_varlen() -> None:
    """Make torch's varlen_attn known to transformers; a second call changes nothing."""
    from torch.nn.attention import varlen

    attend = functools.partial(varlen_attention, kernel=varlen.varlen_attn, parameters=varlen_parameters())
    AttentionInterface.register(VARLEN, functools.partial(attend, is_checked=True))
    AttentionInterface.register(UNCHECKED_VARLEN, functools.partial(attend, is_checked=False))


def varlen_attention(
    module: Any,
    query_BHTD: torch.Tensor,
    key_BHTD: torch.Tensor,
    value_BHTD: torch.Tensor,
    attention_mask: Any = None,
    *,
    kernel: Callable[..., Any],
    parameters: frozenset[str],
    is_checked: bool,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    is_causal: bool | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Compute the causal attention of packed examples, each within its bounds.

    Rows are laid end to end, [B,H,T,D] -> [N,H,D], which copies nothing: projections write [B,T,H,D], and the models
    only transpose them. Keys and values keep their fewer heads.

    A window of W positions in transformers includes the position itself (`kv > q - W`), the kernel's window counts
    those before it: W = 4 is `window_size=(3, 0)`.

    Args:
        module: The attention layer.
        query_BHTD: Queries.
        key_BHTD: Keys, with as many heads or a divisor of that.
        value_BHTD: Values, with as many heads as keys; their head size may be smaller than that of the queries.
        attention_mask: None; a padding mask is refused.
        kernel: torch's varlen_attn.
        parameters: Names of its parameters in this version of torch.
        is_checked: Whether to refuse what the kernel cannot compute.
        scaling: Factor of the scores; by default 1 / sqrt(D).
        sliding_window: Positions that a query sees, itself included; None for all before it.
        cu_seq_lens_q: int32 [S+1], first position of each segment, and N.
        max_length_q: Length of the longest segment, or more.
        is_causal: Whether queries see earlier positions only; by default as the layer says.
        dropout: Must be 0.
        softcap: Must be None.
        s_aux: Must be None.
        position_bias: Must be None.

    Returns:
        The result [B,T,H,D], and None in the place of the scores.

    Raises:
        RuntimeError: Without bounds, as in generation.
        ValueError: If the model asks for something else than plain causal attention.
    """
    # Refuse what would be left out silently.
    if cu_seq_lens_q is None or attention_mask is not None:
        raise RuntimeError("varlen attention needs the bounds of packed examples, and no mask; see dense_attention")
    if is_checked:
        is_causal = module.is_causal if is_causal is None else is_causal
        asked = {"dropout": dropout > 0, "a bound on its scores": softcap is not None, "sinks": s_aux is not None,
                 "a bias by position": position_bias is not None, "later positions": not is_causal,
                 "a window": sliding_window is not None and "window_size" not in parameters}  # fmt: skip
        if any(asked.values()):
            what = next(name for name, is_asked in asked.items() if is_asked)
            raise ValueError(
                f"model.attention: varlen cannot compute the attention of {type(module).__name__} with {what}; "
                "use model.attention=sdpa or eager"
            )
    # Lay the rows end to end.
    B, H, T, D = query_BHTD.shape
    value_dim = value_BHTD.shape[-1]
    if value_dim < D:  # latent attention; the kernel wants one size
        value_BHTD = functional.pad(value_BHTD, (0, D - value_dim))
    query, key, value = (
        heads.transpose(1, 2).reshape(B * T, heads.shape[1], D) for heads in (query_BHTD, key_BHTD, value_BHTD)
    )
    # Adapters may have turned queries and keys to fp32.
    query, key = query.to(value.dtype), key.to(value.dtype)
    # Say causal, window and scale as this version of torch does.
    settings: dict[str, Any] = {}
    if "window_size" in parameters:
        settings["window_size"] = (-1 if sliding_window is None else sliding_window - 1, 0)
        settings["scale"] = scaling
    else:
        settings["is_causal"] = True
        if scaling is not None and scaling != D**-0.5:
            query = query * (scaling * D**0.5)
    if "enable_gqa" in parameters and key.shape[1] != H:
        settings["enable_gqa"] = True
    # Queries and keys share one tensor of bounds: newer kernels see from that that they are aligned.
    result = kernel(query, key, value, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, **settings)
    return result.reshape(B, T, H, -1)[..., :value_dim], None


def attention_arguments(
    causal_lm: Any,
    positions_BT: torch.Tensor,
    *,
    cu_seqlens: torch.Tensor | None = None,
    longest_segment: int | None = None,
) -> dict[str, Any]:
    """Return what a forward pass of the decoder over packed rows needs besides tokens and positions.

    Implementations without a mask need the bounds of the segments; flash attention would otherwise look for them in the
    positions, at every layer, and only in micro-batches of one row. The others need nothing.

    Args:
        causal_lm: A transformers model.
        positions_BT: From 0 in every example; read, which waits for the device, only where bounds are needed and none
            given, as in checks before training.
        cu_seqlens: int32 [S+1] on the model's device.
        longest_segment: Its longest segment.
    """
    if causal_lm.config._attn_implementation in ("sdpa", "eager", "flex_attention"):
        return {}
    if cu_seqlens is None or longest_segment is None:
        bounds, longest_segment = segment_bounds(positions_BT.cpu().numpy())
        cu_seqlens = torch.from_numpy(bounds).to(positions_BT.device)
    lengths = {"max_length_q": longest_segment, "max_length_k": longest_segment}
    return {"cu_seq_lens_q": cu_seqlens, "cu_seq_lens_k": cu_seqlens, **lengths}


@contextlib.contextmanager
def dense_attention(causal_lm: Any) -> Iterator[None]:
    """Compute attention with a mask inside the block: for padded rows, a cache, or generation.

    The result is the same within rounding; training goes back to its own implementation afterwards.
    """
    name = causal_lm.config._attn_implementation
    use_dense_attention(causal_lm)
    try:
        yield
    finally:
        if causal_lm.config._attn_implementation != name:
            causal_lm.set_attn_implementation(name)


def use_dense_attention(causal_lm: Any) -> None:
    """Compute a model's attention with a mask from now on: sdpa, or eager where the model has no sdpa."""
    if causal_lm.config._attn_implementation not in ("sdpa", "eager"):
        causal_lm.set_attn_implementation("sdpa" if type(causal_lm)._supports_sdpa else "eager")


def use_countable_attention(causal_lm: Any) -> None:
    """Let a model of fake tensors save what its attention without a mask saves: inputs, output, a sum a score row.

    Packages and compiled kernels do not run on fake tensors, torch's varlen_attn does. Before torch 2.10 sdpa with its
    mask is counted in their place, which is more than they need.
    """
    if causal_lm.config._attn_implementation in ("sdpa", "eager"):
        return
    if varlen_parameters():
        register_varlen()
        causal_lm.set_attn_implementation(UNCHECKED_VARLEN)
    else:
        use_dense_attention(causal_lm)
