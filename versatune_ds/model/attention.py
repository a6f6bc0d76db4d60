"""Compute attention that keeps packed examples apart, and pass it where the examples of a micro-batch begin and end.

sdpa and eager attention learn the bounds of the examples from a dense mask [B,1,T,T], and compute all T x T scores of a
row only to drop most of them. Variable-length implementations take the flattened micro-batch as one sequence of B*T
positions and the bounds of its examples, and compute nothing else. The bounds come from the plan, on the CPU
(`data/batch.py`), so no layer waits for the device. `attention_choice.py` chooses the implementation.

`varlen` is `torch.nn.attention.varlen.varlen_attn` under transformers' attention interface. No mask function is
registered with it: transformers then makes no mask at all, and does not look for packed examples in the positions,
which would wait for the device at every forward pass (transformers 5.24, `masking_utils._preprocess_mask_arguments`).
Without bounds, as in generation with a cache, it raises an error: see `dense_attention`.

Shape legend: **B** rows, **T** tokens per row, **N** = B*T, **H** heads, **D** head size, **S** segments: examples, and
the padding of each row.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface

from versatune_ds.data.batch import segment_bounds
from versatune_ds.model.packed_rows import SEQUENCE_PARALLEL_NAMES, PackedRows

VARLEN = "versatune_varlen"
"""Name of our function in transformers' interface. It is in no saved config: transformers does not write it."""

UNCHECKED_VARLEN = "versatune_unchecked_varlen"
"""The same function for counting bytes only: it ignores what it cannot compute."""


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
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Compute the causal attention of packed examples, each within its bounds.

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
        others: What else the model asks for; only checked, see `_check_is_plain`.

    Returns:
        The result [B,T,H,D], and None in the place of the scores.

    Raises:
        RuntimeError: Without bounds, as in generation.
        ValueError: If the model asks for something else than plain causal attention.
    """
    if cu_seq_lens_q is None or attention_mask is not None:
        raise RuntimeError("varlen attention needs the bounds of packed examples, and no mask; see dense_attention")
    if is_checked:
        _check_is_plain(module, others, lacks_window=sliding_window is not None and "window_size" not in parameters)
    # Lay the rows end to end, [B,H,T,D] -> [N,H,D]. It copies nothing: projections write [B,T,H,D], models transpose.
    B, H, T, D = query_BHTD.shape
    value_dim = value_BHTD.shape[-1]
    if value_dim < D:  # latent attention; the kernel wants one size
        value_BHTD = functional.pad(value_BHTD, (0, D - value_dim))
    query, key, value = (
        heads.transpose(1, 2).reshape(B * T, heads.shape[1], D) for heads in (query_BHTD, key_BHTD, value_BHTD)
    )
    # Adapters may have turned queries and keys to fp32.
    query, key = query.to(value.dtype), key.to(value.dtype)
    query, settings = _in_terms_of_kernel(query, parameters=parameters, scaling=scaling, sliding_window=sliding_window)
    if "enable_gqa" in parameters and key.shape[1] != H:
        settings["enable_gqa"] = True
    # Queries and keys share one tensor of bounds: newer kernels see from that that they are aligned.
    result = kernel(query, key, value, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, **settings)
    return result.reshape(B, T, H, -1)[..., :value_dim], None


def _check_is_plain(module: Any, others: Mapping[str, Any], *, lacks_window: bool) -> None:
    """Raise ValueError if a layer asks for what the kernel would leave out silently."""
    is_causal = others.get("is_causal")
    asked = {
        "dropout": others.get("dropout", 0.0) > 0,
        "a bound on its scores": others.get("softcap") is not None,
        "sinks": others.get("s_aux") is not None,
        "a bias by position": others.get("position_bias") is not None,
        "later positions": not (module.is_causal if is_causal is None else is_causal),
        "a window": lacks_window,
    }
    what = next((name for name, is_asked in asked.items() if is_asked), None)
    if what is not None:
        raise ValueError(
            f"model.attention: varlen cannot compute the attention of {type(module).__name__} with {what}; "
            "use model.attention=sdpa or eager"
        )


def _in_terms_of_kernel(
    query_NHD: torch.Tensor, *, parameters: frozenset[str], scaling: float | None, sliding_window: int | None
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Return queries and settings that express causality, window and scale as this version of torch does.

    A window of W positions in transformers includes the position itself (`kv > q - W`), the kernel's window counts
    those before it: W = 4 is `window_size=(3, 0)`. torch 2.10 has no scale, so the queries are scaled.
    """
    if "window_size" in parameters:
        window = (-1 if sliding_window is None else sliding_window - 1, 0)
        return query_NHD, {"window_size": window, "scale": scaling}
    D = query_NHD.shape[-1]
    if scaling is not None and scaling != D**-0.5:
        query_NHD = query_NHD * (scaling * D**0.5)
    return query_NHD, {"is_causal": True}


def attention_arguments(
    causal_lm: Any,
    positions_BT: torch.Tensor,
    *,
    cu_seqlens: torch.Tensor | None = None,
    longest_segment: int | None = None,
    group: Any = None,
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
        group: Ranks that share the rows; the positions are then those of complete rows.
    """
    name = causal_lm.config._attn_implementation
    if name in ("sdpa", "eager", "flex_attention"):
        return {}
    if cu_seqlens is None or longest_segment is None:
        bounds, longest_segment = segment_bounds(positions_BT.cpu().numpy())
        cu_seqlens = torch.from_numpy(bounds).to(positions_BT.device)
    lengths = {"max_length_q": longest_segment, "max_length_k": longest_segment}
    bounds = {"cu_seq_lens_q": cu_seqlens, "cu_seq_lens_k": cu_seqlens, **lengths}
    if name in SEQUENCE_PARALLEL_NAMES.values():
        return {"packed_rows": PackedRows(positions_BT=positions_BT, bounds=bounds, group=group)}
    return bounds


@contextlib.contextmanager
def dense_attention(causal_lm: Any) -> Iterator[None]:
    """Compute attention with a mask inside the block: for padded rows, a cache, or generation.

    The result is the same within rounding; the model's own implementation is restored afterwards.
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


def with_dense_attention(causal_lm: Any) -> Any:
    """Return a model that computes its attention with a mask."""
    use_dense_attention(causal_lm)
    return causal_lm


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
