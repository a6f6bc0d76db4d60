"""Time packed attention, forward and backward: rows of several examples that must not see each other.

`sdpa causal` does not keep them apart; it shows what a causal kernel without segments costs.

Shape legend: **B** rows, **H** heads, **T** tokens per row, **D** size of a head.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu_parts.kernel_table import timed_rows
from benchmarks.gpu_parts.place import Place
from benchmarks.gpu_parts.rows import Row
from benchmarks.kernels_timing import Contestant

FLOOR = "varlen_attn"
SHAPES = {"full": (4, 32, 4096, 64, 200), "small": (2, 2, 64, 16, 20)}
"""B, H, T, D and the tokens of one example."""
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """Inputs of one shape: query, key, value [B, H, T, D] and the segment of every token of a row [T]."""

    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    segment_ids_T: torch.Tensor
    example_tokens: int


def rows(place: Place) -> Iterator[Row]:
    """Yield one table."""
    torch.manual_seed(0)
    B, H, T, D, example_tokens = SHAPES[place.size]
    dtype = torch.bfloat16
    inputs = tuple(torch.randn(B, H, T, D, device=place.device, dtype=dtype, requires_grad=True) for _ in range(3))
    segment_ids_T = torch.arange(T, device=place.device) // example_tokens
    packed = Packed(inputs=inputs, segment_ids_T=segment_ids_T, example_tokens=example_tokens)
    table = f"Packed attention, bf16, B={B}, T={T}, {H} heads of {D}, examples of {example_tokens}, forward + backward"
    makers = {
        "sdpa, block mask": _sdpa_with_mask,
        "sdpa, causal (examples not kept apart)": _sdpa_causal,
        FLOOR: _varlen,
        "flex_attention, compiled": _flex,
    }
    contestants = [Contestant(name=name, run=_made_at_first_call(maker, packed)) for name, maker in makers.items()]
    yield from timed_rows(place, table, contestants, floor=FLOOR, floor_column="times varlen_attn")


def _made_at_first_call(maker: Callable[[Packed], Callable[[], object]], packed: Packed) -> Callable[[], object]:
    """Return a way that is built when it first runs, so that one that cannot be built fails alone."""
    made: list[Callable[[], object]] = []

    def run() -> object:
        if not made:
            made.append(maker(packed))
        return made[0]()

    return run


def _with_backward(attention: Attention, inputs: tuple[torch.Tensor, ...]) -> Callable[[], object]:
    grad = torch.randn_like(inputs[0])
    return lambda: torch.autograd.grad(attention(*inputs), inputs, grad)


def _sdpa_with_mask(packed: Packed) -> Callable[[], object]:
    ids_T = packed.segment_ids_T
    order_T = torch.arange(len(ids_T), device=ids_T.device)
    mask_TT = (ids_T[:, None] == ids_T[None, :]) & (order_T[:, None] >= order_T[None, :])
    mask = mask_TT[None, None].expand(packed.inputs[0].shape[0], 1, -1, -1)
    return _with_backward(lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=mask), packed.inputs)


def _sdpa_causal(packed: Packed) -> Callable[[], object]:
    return _with_backward(lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True), packed.inputs)


def _varlen(packed: Packed) -> Callable[[], object]:
    """Return PyTorch's attention over examples of any length, on [B * T, H, D].

    Torch 2.10 takes `is_causal`; later ones `window_size=(-1, 0)`, which means the same.
    """
    from torch.nn.attention.varlen import varlen_attn

    B, H, T, D = packed.inputs[0].shape
    starts = [row * T + start for row in range(B) for start in range(0, T, packed.example_tokens)]
    starts_S = torch.tensor([*starts, B * T], device=packed.segment_ids_T.device, dtype=torch.int32)
    flat = tuple(t.detach().transpose(1, 2).reshape(B * T, H, D).contiguous().requires_grad_() for t in packed.inputs)
    is_old = "is_causal" in inspect.signature(varlen_attn).parameters
    causal = {"is_causal": True} if is_old else {"window_size": (-1, 0)}
    longest = packed.example_tokens
    return _with_backward(lambda q, k, v: varlen_attn(q, k, v, starts_S, starts_S, longest, longest, **causal), flat)


def _flex(packed: Packed) -> Callable[[], object]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    ids_T = packed.segment_ids_T

    def is_seen(_b: torch.Tensor, _h: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return (ids_T[i] == ids_T[j]) & (i >= j)

    mask = create_block_mask(is_seen, None, None, len(ids_T), len(ids_T), device=ids_T.device)
    compiled = torch.compile(flex_attention)
    return _with_backward(lambda q, k, v: compiled(q, k, v, block_mask=mask), packed.inputs)
