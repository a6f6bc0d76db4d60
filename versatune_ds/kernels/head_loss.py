"""Compute head and loss chunk by chunk, with the gradients ready when the forward pass ends.

The one idea: a chunk's logits live in one reused buffer, where the gradient replaces them; both gradient products
follow at once, so logits are neither kept nor computed twice. ZeRO-3 needs this too: the head's weight is only
gathered while the module's forward runs.

What is never materialised: logits of all tokens, logits in float32 beside half-precision ones, masked rows.

Shape legend: **N** tokens, **D** hidden, **V** vocabulary, **K** domains, **n** rows of one chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from versatune_ds.kernels import fixed_point


def chunk_rows(num_rows: int, *, vocabulary: int, element_bytes: int, chunk_mib: float) -> list[slice]:
    """Split rows into the fewest chunks of equal size (the last may be shorter) whose logits fit a budget.

    Example: 10 rows, room for 4: three chunks are needed, so 4 + 4 + 2 rows; room for 6: 5 + 5, not 6 + 4.

    Args:
        num_rows: N, may be 0, which gives no chunk.
        vocabulary: V.
        element_bytes: Bytes of one logit.
        chunk_mib: Budget in MiB; one row is always allowed.

    Returns:
        Slices covering 0..num_rows in order.
    """
    fitting = max(1, int(chunk_mib * 2**20) // (vocabulary * element_bytes))
    num_chunks = -(-num_rows // fitting)
    rows = -(-num_rows // num_chunks) if num_chunks else 1
    return [slice(start, min(start + rows, num_rows)) for start in range(0, num_rows, rows)]


def logits_into(
    buffer_nV: torch.Tensor, hidden_nD: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor | None
) -> torch.Tensor:
    """Return hidden @ weight.T + bias, written into the first rows of a buffer."""
    logits_nV = torch.mm(hidden_nD, weight_VD.t(), out=buffer_nV[: hidden_nD.shape[0]])
    return logits_nV if bias_V is None else logits_nV.add_(bias_V)


def _new_buffer(chunks: Sequence[slice], hidden_ND: torch.Tensor, weight_VD: torch.Tensor) -> torch.Tensor:
    rows = chunks[0].stop if chunks else 0
    return hidden_ND.new_empty(rows, weight_VD.shape[0])


def evaluate_chunks(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    labels_N: torch.Tensor,
    domain_ids_N: torch.Tensor,
    loss_weights_K: torch.Tensor,
    chunks: Sequence[slice],
    settings: tuple[int, float, float, float],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (loss, bins_K5, token_losses_N) without gradients: one product and one reading of the logits."""
    buffer_nV = _new_buffer(chunks, hidden_ND, weight_VD)
    bins_K5 = _no_bins(loss_weights_K)
    token_losses_N = hidden_ND.new_zeros(hidden_ND.shape[0], dtype=torch.float32)
    for rows in chunks:
        logits_nV = logits_into(buffer_nV, hidden_ND[rows], weight_VD, bias_V)
        _, chunk_bins_K5, _, token_losses_N[rows] = torch.ops.versatune.domain_ce(
            logits_nV, labels_N[rows], domain_ids_N[rows], loss_weights_K, *settings
        )
        bins_K5 += chunk_bins_K5
    return fixed_point.weighted_loss(bins_K5, loss_weights_K), bins_K5, token_losses_N


def _no_bins(loss_weights_K: torch.Tensor) -> torch.Tensor:
    shape = (loss_weights_K.shape[0], fixed_point.NUM_COLUMNS)
    return torch.zeros(shape, dtype=torch.int64, device=loss_weights_K.device)


def add_weight_gradient(
    total_VD: torch.Tensor | None, grad_nV: torch.Tensor, hidden_nD: torch.Tensor, *, is_only_chunk: bool
) -> torch.Tensor:
    """Return the weight's gradient with one more chunk, summed in float32 unless it is the only chunk.

    Summing chunks in bfloat16 loses whatever is smaller than 1/256 of the sum so far: training diverges.
    """
    if is_only_chunk:
        return torch.mm(grad_nV.t(), hidden_nD)
    if hidden_nD.is_cuda and hidden_nD.dtype != torch.float32:
        part_VD = torch.mm(grad_nV.t(), hidden_nD, out_dtype=torch.float32)
    elif total_VD is not None and hidden_nD.dtype == torch.float32:
        return total_VD.addmm_(grad_nV.t(), hidden_nD)
    else:
        part_VD = torch.mm(grad_nV.t(), hidden_nD).float()
    return part_VD if total_VD is None else total_VD.add_(part_VD)


class HeadLoss(torch.autograd.Function):
    """Run head and loss, computing the wanted gradients during the forward pass; allows one backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        labels_N: torch.Tensor,
        domain_ids_N: torch.Tensor,
        loss_weights_K: torch.Tensor,
        chunks: Sequence[slice],
        settings: tuple[int, float, float, float],
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (loss, bins_K5, token_losses_N)."""
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        buffer_nV = _new_buffer(chunks, hidden_ND, weight_VD)
        bins_K5 = _no_bins(loss_weights_K)
        token_losses_N = hidden_ND.new_zeros(hidden_ND.shape[0], dtype=torch.float32)
        grad_hidden_ND = torch.empty_like(hidden_ND) if wants_hidden else None
        grad_weight_VD = None
        grad_bias_V = weight_VD.new_zeros(weight_VD.shape[0], dtype=torch.float32) if wants_bias else None
        for rows in chunks:
            grad_nV = logits_into(buffer_nV, hidden_ND[rows], weight_VD, bias_V)
            _, chunk_bins_K5, token_losses_N[rows] = torch.ops.versatune.domain_ce_gradient_(
                grad_nV, labels_N[rows], domain_ids_N[rows], loss_weights_K, *settings
            )
            bins_K5 += chunk_bins_K5
            if grad_hidden_ND is not None:
                torch.mm(grad_nV, weight_VD, out=grad_hidden_ND[rows])
            if wants_weight:
                grad_weight_VD = add_weight_gradient(
                    grad_weight_VD, grad_nV, hidden_ND[rows], is_only_chunk=len(chunks) == 1
                )
            if grad_bias_V is not None:
                grad_bias_V += grad_nV.sum(dim=0, dtype=torch.float32)
        if wants_weight:
            grad_weight_VD = weight_VD.new_zeros(weight_VD.shape) if grad_weight_VD is None else grad_weight_VD
            grad_weight_VD = grad_weight_VD.to(weight_VD.dtype)
        if grad_bias_V is not None:
            grad_bias_V = grad_bias_V.to(bias_V.dtype)
        ctx.save_for_backward(grad_hidden_ND, grad_weight_VD, grad_bias_V)
        ctx.mark_non_differentiable(bins_K5, token_losses_N)
        return fixed_point.weighted_loss(bins_K5, loss_weights_K), bins_K5, token_losses_N

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of hidden states, weight and bias, scaled in place by grad_loss."""
        grads = ctx.saved_tensors
        for grad in grads:
            if grad is not None:
                torch.ops.versatune.scale_(grad, grad_loss)
        return *grads, *(None,) * 5
