"""Compute the cross entropy of a batch, and its statistics by domain, in one pass over the logits.

The loss is a weighted sum over tokens, never a mean, so that losses of chunks, micro-steps and ranks can be added. The
caller divides once, by the global number of loss tokens.

Shape legend: **N** tokens, **V** vocabulary, **K** domains.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from versatune_ds.kernels import fixed_point, ops
from versatune_ds.kernels.kernel_choice import loss_kernel
from versatune_ds.kernels.settings import IGNORE_INDEX, LossSettings

_LOGIT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class DomainLoss(NamedTuple):
    """A loss and its statistics by domain.

    A named tuple, not a dataclass: DeepSpeed 0.19.8 looks for the tensors of a module's output, to which it attaches
    the ZeRO-3 hooks of the backward pass, only in tuples, lists and dicts.
    """

    loss: torch.Tensor
    """float32 scalar with autograd: sum over tokens of loss weight times objective; NaN if a token is invalid."""
    loss_sum_K: torch.Tensor
    """float64 [K], unweighted negative log likelihood in nats, without z-loss and smoothing; absent domain: 0."""
    loss_sq_sum_K: torch.Tensor
    """float64 [K], sum of its squares, for standard errors."""
    num_loss_tokens_K: torch.Tensor
    """int64 [K], tokens that bear loss."""
    token_losses_N: torch.Tensor | None
    """float32 [N] negative log likelihood, 0 where ignored, without gradient; None unless `per_token`."""

    @property
    def by_domain(self) -> DomainSums:
        """Return the three sums by domain as one value."""
        return DomainSums(self.loss_sum_K, self.loss_sq_sum_K, self.num_loss_tokens_K)


class DomainSums(NamedTuple):
    """Sums by domain of one or more micro-batches, on the device, as `DomainLoss` documents them."""

    loss_sum_K: torch.Tensor
    loss_sq_sum_K: torch.Tensor
    num_loss_tokens_K: torch.Tensor


def pack_result(
    loss: torch.Tensor, bins_K5: torch.Tensor, token_losses_N: torch.Tensor, *, per_token: bool
) -> DomainLoss:
    """Return a loss with the statistics of fixed-point sums."""
    return DomainLoss(loss, *fixed_point.statistics_of(bins_K5), token_losses_N if per_token else None)


def loss_weights_or_ones(
    loss_weights_K: torch.Tensor | None, *, num_domains: int, device: torch.device
) -> torch.Tensor:
    """Return float32 loss weights [K] on a device; ones when none are given.

    Raises:
        ValueError: If there are no domains or the weights' shape is not [num_domains].
    """
    if num_domains < 1:
        raise ValueError(f"num_domains: expected at least 1, got {num_domains}")
    if loss_weights_K is None:
        return torch.ones(num_domains, dtype=torch.float32, device=device)
    if tuple(loss_weights_K.shape) != (num_domains,):
        raise ValueError(f"loss_weights_K: expected shape [{num_domains}], got {list(loss_weights_K.shape)}")
    return loss_weights_K.detach().to(device=device, dtype=torch.float32)


def _check_shapes(logits_NV: torch.Tensor, labels_N: torch.Tensor, domain_ids_N: torch.Tensor) -> None:
    if logits_NV.dim() != 2 or logits_NV.shape[1] < 1 or logits_NV.dtype not in _LOGIT_DTYPES:
        raise ValueError(
            "logits_NV: expected float32, bfloat16 or float16 of shape [N, V] with V >= 1, "
            f"got {logits_NV.dtype} {list(logits_NV.shape)}"
        )
    check_ids_shape("labels_N", labels_N, num_rows=logits_NV.shape[0])
    check_ids_shape("domain_ids_N", domain_ids_N, num_rows=logits_NV.shape[0])


def check_ids_shape(name: str, ids_N: torch.Tensor, *, num_rows: int) -> None:
    """Check that ids are int64 of shape [num_rows].

    Raises:
        ValueError: If not.
    """
    if ids_N.dtype != torch.int64 or tuple(ids_N.shape) != (num_rows,):
        raise ValueError(f"{name}: expected int64 of shape [{num_rows}], got {ids_N.dtype} {list(ids_N.shape)}")


class _OverwritingLoss(torch.autograd.Function):
    """Write the gradient over the logits in the forward pass: one read and one write of [N, V] in all."""

    @staticmethod
    def forward(ctx: Any, logits_NV: torch.Tensor, *arguments: Any) -> tuple[torch.Tensor, ...]:
        """Return (loss, bins_K5, token_losses_N)."""
        loss, bins_K5, token_losses_N = torch.ops.versatune.domain_ce_gradient_(logits_NV, *arguments)
        ops.note_overwritten(logits_NV)
        ctx.mark_non_differentiable(bins_K5, token_losses_N)
        ctx.save_for_backward(logits_NV.detach())
        return loss, bins_K5, token_losses_N

    @staticmethod
    def backward(ctx: Any, grad_loss: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        """Return the gradient from the forward pass, scaled in place by grad_loss."""
        (grad_NV,) = ctx.saved_tensors
        ops.scale_once_(grad_NV, grad_loss)
        return grad_NV, *(None,) * 8


def domain_cross_entropy(
    logits_NV: torch.Tensor,
    labels_N: torch.Tensor,
    domain_ids_N: torch.Tensor,
    num_domains: int,
    *,
    loss_weights_K: torch.Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
    z_loss: float = 0.0,
    softcap: float = 0.0,
    label_smoothing: float = 0.0,
    per_token: bool = False,
    overwrite_logits: bool = False,
) -> DomainLoss:
    """Return the summed, domain-weighted cross entropy and its statistics by domain.

    Args:
        logits_NV: float32, bfloat16 or float16 [N, V].
        labels_N: int64 [N], already shifted to the next token; ignore_index where a position bears no loss.
        domain_ids_N: int64 [N], 0..K-1 wherever a position bears loss, anything elsewhere.
        num_domains: K.
        loss_weights_K: float [K], factor of each domain's token losses; None for ones. No gradient flows to it.
        ignore_index: The label that bears no loss.
        z_loss: Factor of the squared logsumexp, see `LossSettings`.
        softcap: Bound of the logits, see `LossSettings`.
        label_smoothing: See `LossSettings`.
        per_token: Also return the loss of every token.
        overwrite_logits: Allow the logits to be replaced by their gradient during the forward pass, which saves a
            buffer of [N, V] and a pass over it. Allows one backward pass; autograd refuses it where an earlier
            operation still needs the logits.

    Returns:
        The result; `.loss` is a sum, never a mean.

    Raises:
        ValueError: If a shape, dtype or setting is wrong, or (CPU only) a loss-bearing id is out of range. On other
            devices such an id makes the loss NaN, since a check would wait for the device.
    """
    _check_shapes(logits_NV, labels_N, domain_ids_N)
    settings = LossSettings(ignore_index=ignore_index, z_loss=z_loss, softcap=softcap, label_smoothing=label_smoothing)
    weights_K = loss_weights_or_ones(loss_weights_K, num_domains=num_domains, device=logits_NV.device)
    device = logits_NV.device
    ops.prepare(device.type)
    kernel = loss_kernel(device.type, device.index, logits_NV.dtype, logits_NV.shape[1])
    arguments = (logits_NV, labels_N, domain_ids_N, weights_K, *settings.as_arguments(), kernel)
    if overwrite_logits and logits_NV.requires_grad and torch.is_grad_enabled():
        return pack_result(*_OverwritingLoss.apply(*arguments), per_token=per_token)
    loss, bins_K5, _, token_losses_N = torch.ops.versatune.domain_ce(*arguments)
    return pack_result(loss, bins_K5, token_losses_N, per_token=per_token)
