"""Compute the loss by domain and its gradient with Triton: the fallback on a GPU without nvcc.

Triton comes with PyTorch's CUDA wheels and needs no compiler. Its kernels read a row twice for the gradient; the loss
and the sums by domain follow in a few small PyTorch operations on [N]. The functions have the signatures of the
operators in `ops`.

Never materialised: logits in float32, a second [N, V] tensor.

Shape legend: **N** tokens, **V** vocabulary, **K** domains.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch

from versatune_ds.kernels import fixed_point, torch_reference

_BLOCK_ELEMENTS = 4096
"""Logits of a row that one program processes at once: 8 KiB in bfloat16."""
_WARPS = 8
"""Warps of a program: 16 logits a thread."""


def is_available(device_type: str) -> bool:
    """Return whether Triton is installed and compiles for a device type."""
    return device_type == "cuda" and importlib.util.find_spec("triton") is not None


@functools.cache
def replace_operators(device_type: str) -> None:
    """Let the operators call these functions on a device type."""
    torch_reference.REPLACEMENTS.impl("scale_", torch_reference.scale_, device_type.upper())
    for function in (domain_ce, domain_ce_backward, domain_ce_gradient_):
        torch_reference.REPLACEMENTS.impl(function.__name__, function, device_type.upper())


def _programs() -> Any:
    from versatune_ds.kernels import triton_programs  # not at the top: see there

    return triton_programs


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
    """Return (loss, bins_K5, normalizers_N2, token_losses_N); the logits are not changed."""
    del kernel_number  # there is one in Triton
    logits_NV = _with_rows_in_line(logits_NV)
    num_rows, vocabulary = logits_NV.shape
    nll_N, objective_N = (logits_NV.new_empty(num_rows, dtype=torch.float32) for _ in range(2))
    normalizers_N2 = logits_NV.new_empty((num_rows, 2), dtype=torch.float32)
    if num_rows:
        _programs().loss_kernel[(num_rows,)](
            logits_NV, logits_NV.stride(0), labels_N.contiguous(), nll_N, objective_N, normalizers_N2,
            vocabulary, ignore_index, z_loss, softcap, label_smoothing, BLOCK=_BLOCK_ELEMENTS, num_warps=_WARPS,
        )  # fmt: skip
    bins_K5 = torch_reference.bins_of_loss_bearing(
        nll_N, objective_N, domain_ids_N, labels_N != ignore_index, loss_weights_K.shape[0]
    )
    return fixed_point.weighted_loss(bins_K5, loss_weights_K), bins_K5, normalizers_N2, nll_N


def _with_rows_in_line(logits_NV: torch.Tensor) -> torch.Tensor:
    return logits_NV if logits_NV.stride(1) == 1 else logits_NV.contiguous()


def _write_gradient(
    logits_NV: torch.Tensor,
    grad_NV: torch.Tensor,
    labels_N: torch.Tensor,
    normalizers_N2: torch.Tensor,
    scale_N: torch.Tensor,
    settings: tuple[float, float, float],
) -> None:
    """Write the gradient, which may be where the logits are: every block is read before it is written."""
    num_rows, vocabulary = logits_NV.shape
    if not num_rows:
        return
    _programs().gradient_kernel[(num_rows, -(-vocabulary // _BLOCK_ELEMENTS))](
        logits_NV, logits_NV.stride(0), grad_NV, grad_NV.stride(0), labels_N.contiguous(), normalizers_N2.contiguous(),
        scale_N.contiguous(), vocabulary, *settings, BLOCK=_BLOCK_ELEMENTS, num_warps=_WARPS,
    )  # fmt: skip


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
    logits_NV = _with_rows_in_line(logits_NV)
    grad_NV = torch.empty_like(logits_NV, memory_format=torch.contiguous_format)
    scale_N = torch_reference.row_scales(labels_N, domain_ids_N, loss_weights_K, ignore_index) * grad_loss
    _write_gradient(logits_NV, grad_NV, labels_N, normalizers_N2, scale_N, (z_loss, softcap, label_smoothing))
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
    scale_N = torch_reference.row_scales(labels_N, domain_ids_N, loss_weights_K, ignore_index)
    _write_gradient(logits_NV, logits_NV, labels_N, normalizers_N2, scale_N, settings[1:])
    return loss, bins_K5, token_losses_N
