"""Count the bytes a forward and backward pass through the decoder keeps alive, without running either.

Under PyTorch's fake tensors every operation runs but nothing is computed or allocated. So the model's own code, with
its attention and its gradient checkpointing, shows what it saves; a dispatch mode adds up the storages that are alive.
There is no formula for any kind of model here.

Not covered: what a GPU's kernels need beside their inputs and outputs. Packing masks are counted where the attention
needs one: rows are packed.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from versatune_ds.model.attention import attention_arguments


@dataclass(frozen=True, slots=True, kw_only=True)
class PassBytes:
    """What one micro-batch keeps alive besides weights, gradients and the head, in bytes."""

    saved: int
    """Alive when the forward pass has ended: what the backward pass needs."""
    peak: int
    """The most alive at any time, in the forward or the backward pass."""


class _LiveBytes(TorchDispatchMode):
    """Add up the storages made while active and not freed yet, leaving out those given."""

    def __init__(self, left_out: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self._seen = {tensor.untyped_storage()._cdata for tensor in left_out}
        self.now, self.peak = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count the storages it made."""
        if func is torch.ops.aten._grouped_mm.default:
            result = _empty_grouped_product(*args, **(kwargs or {}))
        else:
            result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self._count(value.untyped_storage())
        self.peak = max(self.peak, self.now)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        """Count a storage until it is freed."""
        address, num_bytes = storage._cdata, storage.nbytes()
        if address in self._seen:
            return
        self._seen.add(address)
        self.now += num_bytes
        weakref.finalize(storage, self._free, address, num_bytes)

    def _free(self, address: int, num_bytes: int) -> None:
        """Subtract a freed storage; its address may be used again."""
        self._seen.discard(address)
        self.now -= num_bytes


def _empty_grouped_product(left: torch.Tensor, right: torch.Tensor, offs: Any = None, *_: Any, **__: Any) -> Any:
    """Return an empty result of a grouped product, which computes experts.

    torch 2.13: the version for fake tensors refuses all but bf16, which the real operation does not.
    """
    rows, columns = left.shape[-2], right.shape[-1]
    if left.dim() == right.dim() == 2:  # groups along what is summed over: the weights' gradient
        return left.new_empty(offs.shape[0], rows, columns)
    if left.dim() == right.dim() == 3:
        return left.new_empty(left.shape[0], rows, columns)
    return left.new_empty(rows, columns)


def move_to_fake_cpu(model: nn.Module) -> None:
    """Put fake tensors of the CPU in the place of a model's meta tensors; tied weights stay tied.

    On the meta device attention would take its slow general form, which saves other tensors than any real device does.
    The caller has fake tensors switched on.
    """
    made: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = made.setdefault(id(tensor), _on_cpu(tensor))


def _on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """Return an empty tensor or parameter on the CPU like one on the meta device."""
    empty = torch.empty(tensor.shape, dtype=tensor.dtype)
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def decoder_pass_bytes(causal_lm: Any, *, num_rows: int, row_tokens: int, has_router_loss: bool = False) -> PassBytes:
    """Return what a micro-batch of packed rows keeps alive in the decoder of a model of fake tensors.

    Gradients of weights are freed as they come: they are counted apart. The caller has fake tensors switched on.

    Args:
        causal_lm: A transformers model, made under the caller's FakeTensorMode.
        num_rows: Rows of the micro-batch.
        row_tokens: Tokens of a row.
        has_router_loss: Whether the router's logits are kept.
    """
    causal_lm.train()
    for parameter in causal_lm.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_drop_gradient)
    ids = torch.zeros(num_rows, row_tokens, dtype=torch.int64)
    extra = {"output_router_logits": True} if has_router_loss else {}
    with _LiveBytes([*causal_lm.parameters(), *causal_lm.buffers()]) as live:
        inputs = _packed_inputs(causal_lm, ids)
        hidden = causal_lm.get_decoder()(**inputs, attention_mask=None, use_cache=False, **extra)[0]
        del inputs
        saved = live.now
        if hidden.requires_grad:
            hidden.backward(torch.empty_like(hidden))
    return PassBytes(saved=saved, peak=live.peak)


def _packed_inputs(causal_lm: Any, ids: torch.Tensor) -> dict[str, Any]:
    """Return packed rows of fake tokens [B,T] as the decoder takes them.

    One segment is enough: what is saved does not depend on how many there are.
    """
    positions, bounds = torch.zeros_like(ids), torch.zeros(2, dtype=torch.int32)
    lengths = attention_arguments(causal_lm, positions, cu_seqlens=bounds, longest_segment=ids.shape[1])
    return {"input_ids": ids, "position_ids": positions, **lengths}


def _drop_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None
