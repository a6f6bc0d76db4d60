"""Compute head and loss chunk by chunk, with the gradients ready when the forward pass ends.

All chunks share one buffer for their logits, in which the gradient replaces them. Both gradient products follow at
once, so logits are neither stored nor computed twice. ZeRO-3 needs this too: it gathers the head's weight only while
the module's forward runs.

Never materialised: logits of all tokens, logits in float32 beside half-precision ones, masked rows.

Shape legend: **N** tokens, **M** of them kept, **D** hidden, **V** vocabulary, **K** domains, **n** rows of one chunk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from versatune_ds.kernels import fixed_point, ops

_ADDS_INTO_FLOAT32 = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 11)
"""Whether CUDA's addmm can add half-precision products to a float32 sum: PyTorch 2.8 refuses it, 2.11 does it.
torch.compile does not support it (pytorch/pytorch#163880). Without it each chunk costs another float32 [V, D]."""

_ROUNDING = 5e-7
"""Four units in the last place of a float32 near 1."""

_MAX_FLOAT16_SCALE = 1024.0
"""A logit's gradient is at most about 1; beyond this factor it could overflow where its products do not."""


def chunk_rows(num_rows: int, *, vocabulary: int, element_bytes: int, chunk_mib: float) -> list[slice]:
    """Split rows into the fewest chunks of equal size (the last may be shorter) whose logits fit a budget.

    Example: 10 rows, room for 4: three chunks are needed, so 4 + 4 + 2 rows; room for 6: 5 + 5, not 6 + 4.

    Args:
        num_rows: N; 0 gives no chunk.
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


def keep_rows(hidden_ND: torch.Tensor, valid_index_M: torch.Tensor | None, num_valid: int) -> torch.Tensor:
    """Return the rows of valid_index, with zeros for the padding from num_valid on.

    The hidden state of a padding position may be NaN (attention over nothing), and 0 * NaN = NaN would reach the
    weight's gradient.
    """
    if valid_index_M is None:
        return hidden_ND
    hidden_MD = hidden_ND.index_select(0, valid_index_M)
    hidden_MD[num_valid:] = 0.0
    return hidden_MD


def return_rows(
    grad_MD: torch.Tensor, valid_index_M: torch.Tensor | None, num_valid: int, *, num_rows: int
) -> torch.Tensor:
    """Return the values of kept rows at their places among num_rows rows, zeros elsewhere; reverses `keep_rows`."""
    if valid_index_M is None:
        return grad_MD
    grad_ND = grad_MD.new_zeros(num_rows, *grad_MD.shape[1:])
    return grad_ND.index_copy_(0, valid_index_M[:num_valid], grad_MD[:num_valid])


class _Gradients:
    """Accumulate the wanted gradients chunk by chunk; the others are None."""

    def __init__(
        self,
        hidden_MD: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        *,
        wanted: Sequence[bool],
        num_chunks: int,
    ) -> None:
        """Allocate the wanted gradients of (hidden, weight, bias)."""
        wants_hidden, self.wants_weight, wants_bias = wanted
        self.inputs = hidden_MD, weight_VD, bias_V
        self.is_only_chunk = num_chunks == 1
        self.hidden_MD = torch.empty_like(hidden_MD) if wants_hidden else None
        self.weight_VD: torch.Tensor | None = None
        self.bias_V = weight_VD.new_zeros(weight_VD.shape[0], dtype=torch.float32) if wants_bias else None

    def add(self, rows: slice, grad_nV: torch.Tensor) -> None:
        """Add the gradients of a chunk, given the gradient of its logits."""
        hidden_MD, weight_VD, _ = self.inputs
        if self.hidden_MD is not None:
            torch.mm(grad_nV, weight_VD, out=self.hidden_MD[rows])
        if self.wants_weight:
            self.weight_VD = add_weight_gradient(
                self.weight_VD, grad_nV, hidden_MD[rows], is_only_chunk=self.is_only_chunk
            )
        if self.bias_V is not None:
            self.bias_V += grad_nV.sum(dim=0, dtype=torch.float32)

    def finish(self) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Return the gradients in the dtypes of their inputs."""
        _, weight_VD, bias_V = self.inputs
        if self.wants_weight and self.weight_VD is None:  # no row at all
            self.weight_VD = torch.zeros_like(weight_VD)
        grad_weight_VD = None if self.weight_VD is None else self.weight_VD.to(weight_VD.dtype)
        grad_bias_V = None if self.bias_V is None else self.bias_V.to(bias_V.dtype)
        return self.hidden_MD, grad_weight_VD, grad_bias_V


class HeadLoss(torch.autograd.Function):
    """Run head and loss, computing the wanted gradients during the forward pass; allows one backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        valid_index_M: torch.Tensor | None,
        num_valid: int,
        labels_M: torch.Tensor,
        domain_ids_M: torch.Tensor,
        loss_weights_K: torch.Tensor,
        chunks: Sequence[slice],
        settings: tuple[int | float, ...],
        grad_scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (loss, bins_K5, token_losses_M); the gradients are saved multiplied by grad_scale."""
        # Allocate gradients, one buffer for the logits of a chunk, and sums.
        hidden_MD = keep_rows(hidden_ND, valid_index_M, num_valid)
        wanted = ctx.needs_input_grad[:3]
        gradients = _Gradients(hidden_MD, weight_VD, bias_V, wanted=wanted, num_chunks=len(chunks))
        buffer_nV = _new_buffer(chunks, hidden_MD, weight_VD)
        bins_K5 = _no_bins(loss_weights_K)
        token_losses_M = torch.zeros_like(labels_M, dtype=torch.float32)
        # Loss and gradients, chunk by chunk. The weights enter only the gradient: the sums in the bins are unweighted.
        gradient_weights_K = loss_weights_K if grad_scale == 1.0 else loss_weights_K * grad_scale
        for rows in chunks:
            logits_nV = logits_into(buffer_nV, hidden_MD[rows], weight_VD, bias_V)
            _, chunk_bins_K5, token_losses_M[rows] = torch.ops.versatune.domain_ce_gradient_(
                logits_nV, labels_M[rows], domain_ids_M[rows], gradient_weights_K, *settings
            )
            bins_K5 += chunk_bins_K5
            gradients.add(rows, logits_nV)
        # Save the gradients for `backward`, which only scales them.
        grad_hidden_MD, grad_weight_VD, grad_bias_V = gradients.finish()
        if grad_hidden_MD is not None:
            grad_hidden_MD = return_rows(grad_hidden_MD, valid_index_M, num_valid, num_rows=hidden_ND.shape[0])
        ctx.save_for_backward(grad_hidden_MD, grad_weight_VD, grad_bias_V)
        ctx.grad_scale = grad_scale
        ctx.mark_non_differentiable(bins_K5, token_losses_M)
        return fixed_point.weighted_loss(bins_K5, loss_weights_K), bins_K5, token_losses_M

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of hidden states, weight and bias, scaled in place by grad_loss."""
        grads = ctx.saved_tensors
        factor = remaining_factor(grad_loss, ctx.grad_scale)
        for grad in grads:
            if grad is not None:
                ops.scale_once_(grad, factor)
        return *grads, *(None,) * 8


def scale_of_terms(grad_scale: float | None, *, device_type: str, dtype: torch.dtype, num_tokens: int) -> float:
    """Return the factor by which logits' gradients are scaled before they are summed over tokens; 1 for none.

    On a GPU it is the factor that backward applies, whatever the dtype: the kernel multiplies by the loss weights
    anyway, and backward then has nothing to do with the weight's gradient, which would cost a pass over [V, D].

    In float16 it must be bounded. The gradient of a weight is a sum over tokens, and the largest float16 is 65504.
    Over 8192 tokens, terms of 10 sum to 81920, which is infinite, though the caller then divides by the number of loss
    tokens.

    Args:
        grad_scale: Factor that backward will apply, as far as it is known; None for 1.
        device_type: Where the head runs. On a CPU, float32 and bfloat16 keep the order of operations of old runs.
        dtype: dtype of the products.
        num_tokens: Terms of the sum. At 1 / num_tokens the sum is a mean and cannot overflow: a smaller factor would
            only round small probabilities to zero.
    """
    if grad_scale is None or not math.isfinite(grad_scale) or grad_scale <= 0.0:
        return 1.0
    if dtype == torch.float16:
        return min(max(grad_scale, 1.0 / max(num_tokens, 1)), _MAX_FLOAT16_SCALE)
    return grad_scale if device_type == "cuda" else 1.0


def remaining_factor(grad_loss: torch.Tensor, grad_scale: float) -> torch.Tensor:
    """Return the factor that is left for backward; exactly 1 if the two differ by rounding alone.

    Host and device round the factor at different places, so their quotient may be 1 + 1e-7. Only an exact 1 spares the
    pass over the gradients.
    """
    if grad_scale == 1.0:
        return grad_loss
    factor = grad_loss / grad_scale
    return torch.where((factor - 1.0).abs() <= _ROUNDING, 1.0, factor)


def evaluate_chunks(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    valid_index_M: torch.Tensor | None,
    num_valid: int,
    labels_M: torch.Tensor,
    domain_ids_M: torch.Tensor,
    loss_weights_K: torch.Tensor,
    chunks: Sequence[slice],
    settings: tuple[int | float, ...],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (loss, bins_K5, token_losses_M) without gradients: one product, and one read of the logits."""
    hidden_MD = keep_rows(hidden_ND, valid_index_M, num_valid)
    buffer_nV = _new_buffer(chunks, hidden_MD, weight_VD)
    bins_K5 = _no_bins(loss_weights_K)
    token_losses_M = torch.zeros_like(labels_M, dtype=torch.float32)
    for rows in chunks:
        logits_nV = logits_into(buffer_nV, hidden_MD[rows], weight_VD, bias_V)
        _, chunk_bins_K5, _, token_losses_M[rows] = torch.ops.versatune.domain_ce(
            logits_nV, labels_M[rows], domain_ids_M[rows], loss_weights_K, *settings
        )
        bins_K5 += chunk_bins_K5
    return fixed_point.weighted_loss(bins_K5, loss_weights_K), bins_K5, token_losses_M


def _no_bins(loss_weights_K: torch.Tensor) -> torch.Tensor:
    shape = (loss_weights_K.shape[0], fixed_point.NUM_COLUMNS)
    return torch.zeros(shape, dtype=torch.int64, device=loss_weights_K.device)


def add_weight_gradient(
    total_VD: torch.Tensor | None, grad_nV: torch.Tensor, hidden_nD: torch.Tensor, *, is_only_chunk: bool
) -> torch.Tensor:
    """Return the weight's gradient with one more chunk added, in float32 unless it is the only chunk.

    A sum in bfloat16 loses whatever is smaller than 1/256 of it, and training diverges. On CPU, whose products cannot
    return float32 from bfloat16, each chunk's share is rounded once before it is added.
    """
    if is_only_chunk:
        return torch.mm(grad_nV.t(), hidden_nD)
    if hidden_nD.is_cuda and hidden_nD.dtype != torch.float32:
        if total_VD is not None and _ADDS_INTO_FLOAT32 and not torch.compiler.is_compiling():
            return torch.addmm(total_VD, grad_nV.t(), hidden_nD, out_dtype=torch.float32, out=total_VD)
        part_VD = torch.mm(grad_nV.t(), hidden_nD, out_dtype=torch.float32)
    elif total_VD is not None and hidden_nD.dtype == torch.float32:
        return total_VD.addmm_(grad_nV.t(), hidden_nD)
    else:
        part_VD = torch.mm(grad_nV.t(), hidden_nD).float()
    return part_VD if total_VD is None else total_VD.add_(part_VD)
