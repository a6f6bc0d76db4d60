"""Check that rows, a model and its attention can be computed in slices (`train.sequence_parallel`).

Shape legend: **N** ranks that share a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from versatune_ds.distributed import any_rank
from versatune_ds.model.domain_model import DomainModel
from versatune_ds.model.sizes import sizes_of

_KEY = "train.sequence_parallel"
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Largest difference of two hidden values, relative to the largest, as in model_check.py."""


def check_row_slices(num_slices: int, *, row_tokens: int, is_compiled: bool) -> None:
    """Check that rows divide into slices.

    Raises:
        ValueError: If they do not.
    """
    if row_tokens % num_slices:
        raise ValueError(
            f"{_KEY}: {num_slices} does not divide data.row_tokens={row_tokens}; use a multiple of {num_slices} "
            "tokens a row"
        )
    if is_compiled and num_slices > 1:
        raise ValueError(f"{_KEY}: {num_slices} with model.compile=true is not supported; set model.compile=false")


def check_model_slices(config: Any, *, num_slices: int) -> None:
    """Check from a transformers config that a model can be computed in slices.

    Raises:
        ValueError: If its heads do not divide, or a layer needs more than the tokens of a slice outside its attention.
    """
    if num_slices == 1:
        return
    text = config.get_text_config(decoder=True)
    values, num_heads = text.to_dict(), getattr(text, "num_attention_heads", None)
    if not num_heads or num_heads % num_slices:
        raise ValueError(
            f"{_KEY}: {num_slices} does not divide the model's {num_heads} attention heads; use a divisor of "
            f"{num_heads}, or 1"
        )
    other_layers = set(values.get("layer_types") or ()) - {"full_attention", "sliding_attention"}
    rope_types = _rope_types(values) & {"dynamic", "longrope"}
    obstacle = (
        f"its layers are of type {', '.join(sorted(other_layers))}" if other_layers
        else f"its positions depend on the longest example of a slice ({rope_types.pop()})" if rope_types
        else "its scores are bounded" if values.get("attn_logit_softcapping")
        else "it has experts, whose router loss and load need complete rows" if sizes_of(config).num_experts
        else "its attention is not causal" if values.get("use_bidirectional_attention")
        else None
    )  # fmt: skip
    if obstacle is not None:
        raise ValueError(f"{_KEY}: {num_slices} is not supported for this model: {obstacle}; use 1")


def _rope_types(values: Mapping[str, Any]) -> set[str]:
    """Return the kinds of rotary positions that a config names, in the forms of transformers 4 and 5."""
    found: set[str] = set()
    for key in ("rope_scaling", "rope_parameters"):
        block = values.get(key) or {}
        for part in (block, *(inner for inner in block.values() if isinstance(inner, Mapping))):
            found |= {str(part[name]) for name in ("rope_type", "type") if name in part}
    return found


def check_attention_slices(wanted: str, *, num_slices: int) -> None:
    """Raise ValueError if `model.attention` names an implementation that has no form for slices."""
    if num_slices > 1 and wanted not in ("auto", "sdpa", "varlen"):
        raise ValueError(f"model.attention: {wanted} with {_KEY}={num_slices}; use sdpa, varlen or auto")


@torch.no_grad()
def check_slices_give_the_rows(model: DomainModel) -> None:
    """Compare a small row's hidden states in slices and complete, so that no token is computed without its past.

    Reading a model's code cannot tell: some mix tokens outside attention (convolutions, recurrent layers). Call it in
    evaluation mode on every rank; under ZeRO-3 once the engine exists. Communication: the model's, one all-reduce.

    Raises:
        ValueError: On every rank, if they differ on one.
    """
    group, causal_lm = model.sequence_group, model.causal_lm
    if group is None:
        return
    num_slices, slice_index = dist.get_world_size(group), dist.get_rank(group)
    # Two examples of 5N and 3N tokens: slices of 8 tokens begin within them.
    device = next(causal_lm.parameters()).device
    lengths = (5 * num_slices, 3 * num_slices)
    positions = torch.cat([torch.arange(length, device=device) for length in lengths])[None]
    ids = torch.arange(8 * num_slices, device=device)[None] * 7 % sizes_of(causal_lm.config).vocabulary
    whole = model.run_decoder(ids, positions)[0]
    own = (values.chunk(num_slices, dim=1)[slice_index] for values in (ids, positions))
    part = model.run_decoder(*own, positions)[0]
    expected = whole.chunk(num_slices, dim=1)[slice_index].float()
    difference = (expected - part.float()).abs().max() / expected.abs().max().clamp(min=1e-6)
    if any_rank(not bool(difference <= _TOLERANCE.get(whole.dtype, 0.1))):
        raise ValueError(
            f"{_KEY}: {num_slices} is not supported for {type(causal_lm).__name__}: slices of a row give other results "
            f"than the row (by {float(difference):.1%}), as it looks at other tokens outside its attention; use 1"
        )
