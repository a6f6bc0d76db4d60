"""Compute the loss by domain in float64 with PyTorch's own operations: what every kernel is compared with.

Shape legend: **N** tokens, **V** vocabulary, **K** domains, **D** hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from versatune_ds.kernels import LossSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactLoss:
    """The results of one case in float64."""

    loss: torch.Tensor
    nll_N: torch.Tensor
    loss_sum_K: torch.Tensor
    loss_sq_sum_K: torch.Tensor
    num_loss_tokens_K: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """The inputs of one test."""

    logits_NV: torch.Tensor
    labels_N: torch.Tensor
    domain_ids_N: torch.Tensor
    loss_weights_K: torch.Tensor

    @property
    def num_domains(self) -> int:
        return self.loss_weights_K.shape[0]


def make_case(
    num_rows: int,
    vocabulary: int,
    *,
    num_domains: int = 4,
    dtype: torch.dtype = torch.float32,
    masked: float = 0.3,
    seed: int = 0,
    scale: float = 3.0,
) -> Case:
    """Draw logits, labels of which a share is masked, domains of which the last is absent, and loss weights."""
    generator = torch.Generator().manual_seed(seed)
    labels_N = torch.randint(0, vocabulary, (num_rows,), generator=generator)
    labels_N[torch.rand(num_rows, generator=generator) < masked] = -100
    return Case(
        logits_NV=(torch.randn(num_rows, vocabulary, generator=generator) * scale).to(dtype),
        labels_N=labels_N,
        domain_ids_N=torch.randint(0, max(1, num_domains - 1), (num_rows,), generator=generator),
        loss_weights_K=torch.rand(num_domains, generator=generator) + 0.5,
    )


def exact_loss(logits_NV: torch.Tensor, case: Case, settings: LossSettings | None = None) -> ExactLoss:
    """Return the results for float64 logits, which may require a gradient."""
    settings = settings or LossSettings()
    x_NV = settings.softcap * torch.tanh(logits_NV / settings.softcap) if settings.softcap else logits_NV
    bears_loss_N = case.labels_N != settings.ignore_index
    label_N1 = case.labels_N.where(bears_loss_N, 0)[:, None]
    log_p_NV = functional.log_softmax(x_NV, dim=-1)
    nll_N = torch.where(bears_loss_N, -log_p_NV.gather(1, label_N1)[:, 0], 0.0)
    smooth_N = torch.where(bears_loss_N, -log_p_NV.mean(dim=-1), 0.0)
    z_N = torch.where(bears_loss_N, torch.logsumexp(x_NV, dim=-1).square(), 0.0)
    objective_N = (1 - settings.label_smoothing) * nll_N + settings.label_smoothing * smooth_N + settings.z_loss * z_N
    sums = torch.zeros(3, case.num_domains, dtype=torch.float64)
    for row, values in enumerate((nll_N, nll_N.square(), bears_loss_N.double())):
        sums[row].index_add_(0, case.domain_ids_N, values.detach())
    weights_N = case.loss_weights_K.double()[case.domain_ids_N]
    return ExactLoss(
        loss=(weights_N * objective_N).sum(),
        nll_N=nll_N.detach(),
        loss_sum_K=sums[0],
        loss_sq_sum_K=sums[1],
        num_loss_tokens_K=sums[2].long(),
    )


def exact_gradient(case: Case, settings: LossSettings | None = None) -> tuple[ExactLoss, torch.Tensor]:
    """Return the exact results and the float64 gradient with respect to the logits."""
    logits_NV = case.logits_NV.double().requires_grad_()
    exact = exact_loss(logits_NV, case, settings)
    exact.loss.backward()
    return exact, logits_NV.grad
