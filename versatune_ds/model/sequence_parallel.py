"""Compute attention over rows that several ranks share, by exchanging tokens for heads (`train.sequence_parallel`).

Everything but attention works on single tokens, so a rank computes it for its slice of a row alone. Around attention
two exchanges among the N ranks of a group turn slices into heads and back:

    [B, H, T/N, D] on each rank --all-to-all--> [B, H/N, T, D] --attention--> [B, H/N, T, D] --all-to-all--> slices

So each rank computes the ordinary attention of complete packed rows, for its share of the heads. The backward pass
makes the reverse exchanges, after which a rank's gradients are those of the group's summed loss with respect to its own
use of the weights. DeepSpeed's mean over all ranks adds them up as it does without slices: the scale of the loss in
`Engine.train_step` needs no other factor.

Source: Jacobs et al. 2023, DeepSpeed Ulysses, section 3.
Differences from the paper: key and value heads that N does not divide are repeated first.

Shape legend: **B** rows, **T** tokens per row, **N** ranks of a group, **H** heads, **D** head size.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional
from transformers import AttentionInterface

from versatune_ds.distributed import World
from versatune_ds.model.attention import VARLEN, varlen_attention, varlen_parameters
from versatune_ds.model.packed_rows import SEQUENCE_PARALLEL_NAMES, PackedRows, num_repeats
from versatune_ds.model.slice_checks import check_attention_slices, check_model_slices

logger = logging.getLogger(__name__)

_KEY = "train.sequence_parallel"


class _Exchange(torch.autograd.Function):
    """Send part i of a tensor [N, ...] to rank i of the group, and receive one from each; its own transpose."""

    @staticmethod
    def forward(ctx: Any, parts: torch.Tensor, group: Any) -> torch.Tensor:
        """Return the received parts, in rank order. Communication: one all-to-all."""
        ctx.group = group
        received = torch.empty_like(parts)
        dist.all_to_all_single(received, parts, group=group)
        return received

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the gradients of the parts to the ranks that sent them. Communication: one all-to-all."""
        return _Exchange.apply(gradients[0].contiguous(), ctx.group), None


def heads_of_rows(slices_BHtD: torch.Tensor, group: Any) -> torch.Tensor:
    """Return this rank's heads of complete rows [B,H/N,T,D] from all heads of its slice [B,H,T/N,D]."""
    N = dist.get_world_size(group)
    B, H, t, D = slices_BHtD.shape
    parts_NBhtD = slices_BHtD.reshape(B, N, H // N, t, D).transpose(0, 1).contiguous()
    received_NBhtD = _Exchange.apply(parts_NBhtD, group)  # part i is of slice i
    return received_NBhtD.permute(1, 2, 0, 3, 4).reshape(B, H // N, N * t, D)


def slices_of_rows(rows_BThD: torch.Tensor, group: Any) -> torch.Tensor:
    """Return all heads of this rank's slice [B,T/N,H,D] from its heads of complete rows [B,T,H/N,D]."""
    N = dist.get_world_size(group)
    B, T, h, D = rows_BThD.shape
    parts_NBthD = rows_BThD.reshape(B, N, T // N, h, D).transpose(0, 1).contiguous()
    received_NBthD = _Exchange.apply(parts_NBthD, group)  # part i has rank i's heads
    return received_NBthD.permute(1, 2, 0, 3, 4).reshape(B, T // N, N * h, D)


def attention_of_slices(
    module: Any,
    query_BHTD: torch.Tensor,
    key_BHTD: torch.Tensor,
    value_BHTD: torch.Tensor,
    attention_mask: Any = None,
    *,
    implementation: str,
    packed_rows: PackedRows | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Compute the causal attention of packed rows, of which each rank of a group has a slice.

    Args:
        module: The attention layer.
        query_BHTD: Queries of this rank's slice; of complete rows where `packed_rows` has no group.
        key_BHTD: Keys, with as many heads or a divisor of that.
        value_BHTD: Values, with as many heads as keys.
        attention_mask: None; a padding mask is refused.
        implementation: How complete rows are computed: sdpa or varlen.
        packed_rows: Where the examples lie in the complete rows.
        others: What else the model asks for.

    Returns:
        The result [B,T,H,D], and None in the place of the scores. Communication: four all-to-alls.

    Raises:
        RuntimeError: Without `packed_rows`, as in generation.
        ValueError: If the model asks for something else than plain causal attention.
    """
    if packed_rows is None or attention_mask is not None:
        raise RuntimeError("attention over slices needs the bounds of packed examples, and no mask; dense_attention")
    if others.get("softcap") is not None or others.get("s_aux") is not None or others.get("position_bias") is not None:
        raise ValueError(f"{_KEY}: {type(module).__name__} bounds or biases its scores, which is not supported; use 1")
    group, heads = packed_rows.group, (query_BHTD, key_BHTD, value_BHTD)
    if group is not None:
        num_query_heads, num_ranks = query_BHTD.shape[1], dist.get_world_size(group)
        repeats = num_repeats(key_BHTD.shape[1], num_query_heads=num_query_heads, num_ranks=num_ranks)
        keys_and_values = (part.repeat_interleave(repeats, dim=1) if repeats > 1 else part for part in heads[1:])
        heads = tuple(heads_of_rows(part, group) for part in (query_BHTD, *keys_and_values))
    if implementation == "varlen":
        result_BThD = _varlen(module, *heads, packed_rows=packed_rows, **others)
    else:
        result_BThD = _sdpa(*heads, packed_rows=packed_rows, **others)
    return (result_BThD if group is None else slices_of_rows(result_BThD, group)), None


def _sdpa(
    query_BHTD: torch.Tensor,
    key_BHTD: torch.Tensor,
    value_BHTD: torch.Tensor,
    *,
    packed_rows: PackedRows,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> torch.Tensor:
    """Return the attention of complete rows by torch's sdpa, [B,T,H,D]."""
    num_repeated = query_BHTD.shape[1] // key_BHTD.shape[1]
    key_BHTD, value_BHTD = (part.repeat_interleave(num_repeated, dim=1) for part in (key_BHTD, value_BHTD))
    result_BHTD = functional.scaled_dot_product_attention(
        query_BHTD, key_BHTD, value_BHTD, attn_mask=packed_rows.mask(sliding_window), dropout_p=dropout, scale=scaling
    )
    return result_BHTD.transpose(1, 2)


def _varlen(module: Any, *heads: torch.Tensor, packed_rows: PackedRows, **others: Any) -> torch.Tensor:
    """Return the attention of complete rows by torch's varlen_attn, [B,T,H,D]."""
    from torch.nn.attention import varlen

    settings = {"kernel": varlen.varlen_attn, "parameters": varlen_parameters(), "is_checked": True}
    return varlen_attention(module, *heads, **settings, **{**others, **packed_rows.bounds})[0]


def split_attention(causal_lm: Any, *, wanted: str, num_slices: int, world: World) -> Any:
    """Let a model compute its attention over slices; return the process group that shares this rank's rows.

    Every rank makes all groups. Communication: that of making them.

    Args:
        causal_lm: A transformers model.
        wanted: `model.attention`.
        num_slices: `train.sequence_parallel`; with 1 nothing changes and None is returned.
        world: This process's place.

    Raises:
        ValueError: If the model or its attention cannot be computed in slices.
    """
    if num_slices == 1:
        return None
    check_model_slices(causal_lm.config, num_slices=num_slices)
    current = causal_lm.config._attn_implementation
    inner = "varlen" if current == VARLEN else "sdpa"
    check_attention_slices(wanted, num_slices=num_slices)
    model_class = type(causal_lm)
    if not model_class._supports_attention_backend or (inner == "sdpa" and not model_class._supports_sdpa):
        raise ValueError(
            f"{_KEY}: {num_slices} is not supported for {model_class.__name__}: its code has no interface for "
            "attention; use 1"
        )
    name = SEQUENCE_PARALLEL_NAMES[inner]
    AttentionInterface.register(name, functools.partial(attention_of_slices, implementation=inner))
    causal_lm.set_attn_implementation(name)
    instead = "" if current in (VARLEN, "sdpa") else f" instead of {current}, which has no form for slices"
    logger.info("sequence parallel: %d ranks share a row; attention by %s%s", num_slices, inner, instead)
    firsts = range(0, world.world_size, num_slices)
    groups = [dist.new_group(list(range(first, first + num_slices))) for first in firsts]
    return groups[world.rank // num_slices]
