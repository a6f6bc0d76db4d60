"""Compute the loss by domain and its gradient in plain PyTorch: the definition, and the fallback without a compiler.

These functions have the signatures of the operators in `ops`, which call them on every device without a compiled
kernel. Rows are processed in blocks, so that no second [N, V] tensor is needed.

Shape legend: **N** tokens, **V** vocabulary, **K** domains, **n** rows of one block.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

from versatune_ds.kernels import fixed_point

REPLACEMENTS = torch.library.Library("versatune", "FRAGMENT")
"""Registrations that take the place of a compiled library's; they last as long as this object."""

_BLOCK_ELEMENTS = 1 << 22
"""Logits processed at once; 16 MiB in float32, which fits into the last-level cache of a server CPU."""


def row_blocks(num_rows: int, vocabulary: int) -> Iterator[slice]:
    """Yield slices of rows with about `_BLOCK_ELEMENTS` logits each; at least one row per slice."""
    rows = max(1, _BLOCK_ELEMENTS // max(vocabulary, 1))
    for start in range(0, num_rows, rows):
        yield slice(start, min(start + rows, num_rows))


def _softcapped(logits_nV: torch.Tensor, softcap: float) -> torch.Tensor:
    x_nV = logits_nV.float()
    return torch.tanh(x_nV / softcap) * softcap if softcap > 0.0 else x_nV


def _check_ids(
    labels_N: torch.Tensor, domain_ids_N: torch.Tensor, *, vocabulary: int, num_domains: int, ignore_index: int
) -> None:
    """Check the ids of loss-bearing tokens, on CPU only: elsewhere the host would have to wait for the device.

    Raises:
        ValueError: If a label or a domain id is out of range.
    """
    if labels_N.device.type != "cpu":
        return
    bears_loss_N = labels_N != ignore_index
    for what, ids, size in (("label", labels_N, vocabulary), ("domain id", domain_ids_N, num_domains)):
        is_bad_N = bears_loss_N & ((ids < 0) | (ids >= size))
        if bool(is_bad_N.any()):
            row = int(is_bad_N.nonzero()[0])
            raise ValueError(f"row {row}: {what} {int(ids[row])} is outside 0..{size - 1}")


def _block_losses(
    logits_nV: torch.Tensor, labels_n: torch.Tensor, z_loss: float, softcap: float, label_smoothing: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (nll_n, objective_n, normalizers_n2) of rows as if all bore loss; a label out of range gives NaN.

    A normaliser is (max, log of the sum of exp(x - max)); their sum is lse. They are kept apart because with large
    logits one float32 would lose the digits that probabilities need.
    """
    # Log probabilities.
    x_nV = _softcapped(logits_nV, softcap)
    max_n1 = x_nV.amax(dim=-1, keepdim=True)
    log_p_nV = x_nV - max_n1
    # Not torch.log_softmax, which on CPU rounds max + log_sum: 1 % of the label's gradient at p = 0.9999.
    log_sum_n1 = log_p_nV.exp().sum(dim=-1, keepdim=True).log()
    log_p_nV -= log_sum_n1
    # Negative log likelihood of the labels.
    is_label_n = (labels_n >= 0) & (labels_n < x_nV.shape[1])
    nll_n = -log_p_nV.gather(1, labels_n.where(is_label_n, 0)[:, None])[:, 0]
    nll_n = nll_n.masked_fill(~is_label_n, float("nan"))
    normalizers_n2 = torch.cat((max_n1, log_sum_n1), dim=1)
    # The objective, with label smoothing and z-loss.
    objective_n = nll_n
    if label_smoothing > 0.0:
        objective_n = (1.0 - label_smoothing) * nll_n - label_smoothing * log_p_nV.mean(dim=-1)
    if z_loss > 0.0:
        objective_n = objective_n + z_loss * normalizers_n2.sum(dim=1).square()
    return nll_n, objective_n, normalizers_n2


def _block_gradient(
    logits_nV: torch.Tensor,
    labels_n: torch.Tensor,
    normalizers_n2: torch.Tensor,
    scale_n: torch.Tensor,
    z_loss: float,
    softcap: float,
    label_smoothing: float,
) -> torch.Tensor:
    """Return the float32 gradient of sum(scale * objective); ignored rows have scale 0."""
    x_nV = _softcapped(logits_nV, softcap)
    grad_nV = torch.exp(x_nV - normalizers_n2[:, :1] - normalizers_n2[:, 1:])
    if z_loss > 0.0:
        grad_nV *= 1.0 + 2.0 * z_loss * normalizers_n2.sum(dim=1, keepdim=True)
    if label_smoothing > 0.0:
        grad_nV -= label_smoothing / x_nV.shape[1]
    # Subtract the label's 1 in float32, before any rounding: at p = 0.9999, bfloat16 would give p - 1 = 0.
    label_term_n1 = torch.full_like(scale_n, label_smoothing - 1.0)[:, None]
    grad_nV.scatter_add_(1, labels_n.clamp(0, x_nV.shape[1] - 1)[:, None], label_term_n1)
    if softcap > 0.0:
        grad_nV *= 1.0 - (x_nV / softcap).square()
    return torch.where(scale_n[:, None] == 0.0, 0.0, grad_nV * scale_n[:, None])


def row_scales(
    labels_N: torch.Tensor, domain_ids_N: torch.Tensor, loss_weights_K: torch.Tensor, ignore_index: int
) -> torch.Tensor:
    """Return each row's loss weight, float32 [N]; 0 for an ignored row."""
    ids_N = domain_ids_N.clamp(0, loss_weights_K.shape[0] - 1)
    return loss_weights_K[ids_N].where(labels_N != ignore_index, 0.0)


def domain_ce(
    logits_NV: torch.Tensor,
    labels_N: torch.Tensor,
    domain_ids_N: torch.Tensor,
    loss_weights_K: torch.Tensor,
    ignore_index: int,
    z_loss: float,
    softcap: float,
    label_smoothing: float,
    kernel_number: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (loss, bins_K5, normalizers_N2, token_losses_N); the logits are not changed.

    Raises:
        ValueError: On CPU, if a label or domain id of a loss-bearing token is out of range.
    """
    del kernel_number  # there is one implementation in PyTorch
    num_rows, vocabulary = logits_NV.shape
    num_domains = loss_weights_K.shape[0]
    _check_ids(labels_N, domain_ids_N, vocabulary=vocabulary, num_domains=num_domains, ignore_index=ignore_index)
    nll_N, objective_N = (logits_NV.new_zeros(num_rows, dtype=torch.float32) for _ in range(2))
    normalizers_N2 = logits_NV.new_zeros((num_rows, 2), dtype=torch.float32)
    for rows in row_blocks(num_rows, vocabulary):
        nll_N[rows], objective_N[rows], normalizers_N2[rows] = _block_losses(
            logits_NV[rows], labels_N[rows], z_loss, softcap, label_smoothing
        )
    bears_loss_N = labels_N != ignore_index
    token_losses_N = nll_N.where(bears_loss_N, 0.0)
    bins_K5 = bins_of_loss_bearing(token_losses_N, objective_N, domain_ids_N, bears_loss_N, num_domains)
    return fixed_point.weighted_loss(bins_K5, loss_weights_K), bins_K5, normalizers_N2, token_losses_N


def bins_of_loss_bearing(
    nll_N: torch.Tensor,
    objective_N: torch.Tensor,
    domain_ids_N: torch.Tensor,
    bears_loss_N: torch.Tensor,
    num_domains: int,
) -> torch.Tensor:
    """Sum by domain, with ignored tokens in a bin of their own, so that no shape depends on the data."""
    ids_N = domain_ids_N.where((domain_ids_N >= 0) & (domain_ids_N < num_domains), num_domains + 1)
    ids_N = ids_N.where(bears_loss_N, num_domains)
    bins = fixed_point.sum_by_domain(nll_N, objective_N.where(bears_loss_N, 0.0), ids_N, num_domains + 2)
    # A loss-bearing token with an impossible domain id counts as invalid in domain 0; on CPU such ids are refused.
    bins[0, fixed_point.INVALID] += bins[num_domains + 1, fixed_point.COUNT]
    return bins[:num_domains].contiguous()


def domain_ce_backward(
    logits_NV: torch.Tensor,
    labels_N: torch.Tensor,
    domain_ids_N: torch.Tensor,
    loss_weights_K: torch.Tensor,
    normalizers_N2: torch.Tensor,
    grad_loss: torch.Tensor,
    ignore_index: int,
    z_loss: float,
    softcap: float,
    label_smoothing: float,
) -> torch.Tensor:
    """Return d(loss)/d(logits) times grad_loss, in the dtype of the logits."""
    grad_NV = torch.empty_like(logits_NV, memory_format=torch.contiguous_format)
    scale_N = row_scales(labels_N, domain_ids_N, loss_weights_K, ignore_index) * grad_loss
    for rows in row_blocks(*logits_NV.shape):
        grad_NV[rows] = _block_gradient(
            logits_NV[rows], labels_N[rows], normalizers_N2[rows], scale_N[rows], z_loss, softcap, label_smoothing
        )
    return grad_NV


def domain_ce_gradient_(
    logits_NV: torch.Tensor,
    labels_N: torch.Tensor,
    domain_ids_N: torch.Tensor,
    loss_weights_K: torch.Tensor,
    ignore_index: int,
    z_loss: float,
    softcap: float,
    label_smoothing: float,
    kernel_number: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Overwrite the logits with the gradient of the loss and return (loss, bins_K5, token_losses_N)."""
    del kernel_number
    settings = (ignore_index, z_loss, softcap, label_smoothing)
    loss, bins_K5, normalizers_N2, token_losses_N = domain_ce(
        logits_NV, labels_N, domain_ids_N, loss_weights_K, *settings
    )
    scale_N = row_scales(labels_N, domain_ids_N, loss_weights_K, ignore_index)
    for rows in row_blocks(*logits_NV.shape):
        logits_NV[rows] = _block_gradient(
            logits_NV[rows], labels_N[rows], normalizers_N2[rows], scale_N[rows], z_loss, softcap, label_smoothing
        )
    return loss, bins_K5, token_losses_N


def scale_(values: torch.Tensor, factor: torch.Tensor) -> None:
    """Multiply values by a scalar tensor in place."""
    values.mul_(factor)


@functools.cache
def replace_operators(device_type: str) -> None:
    """Let the operators call these functions on a device type, although a compiled library is loaded for it."""
    for function in (domain_ce, domain_ce_backward, domain_ce_gradient_, scale_):
        REPLACEMENTS.impl(function.__name__, function, device_type.upper())
