"""Sum token losses by domain in int64 fixed point, so that the result does not depend on the order of summation.

Float addition is not associative: sums would depend on chunk sizes, thread counts and atomics. Integer addition is, so
every implementation (PyTorch, C++, CUDA) rounds each token once and adds integers: the sums are equal bit for bit.

Shape legend: **K** domains, **N** tokens; bins_K5 has one row per domain, with the columns below.
"""

from __future__ import annotations

import torch

NLL, NLL_SQ, OBJECTIVE, COUNT, INVALID = range(5)
"""Columns of bins_K5; INVALID counts tokens whose loss is not finite, out of range, or has an impossible id."""
NUM_COLUMNS = 5
LOSS_SCALE = float(2**24)
"""One unit of NLL and OBJECTIVE is 2^-24 nats: a token is rounded by at most 3e-8 nats."""
SQUARE_SCALE = float(2**20)
"""One unit of NLL_SQ is 2^-20 nats^2."""
LOSS_LIMIT = float(2**15)
"""Above 32768 nats a token is invalid; 2^24 tokens at the limit still fit into int64."""
SQUARE_LIMIT = float(2**24)
"""A square saturates here (4096 nats), since only standard errors use it; 2^19 tokens at the limit fit into int64."""


def sum_by_domain(
    nll_N: torch.Tensor, objective_N: torch.Tensor, domain_ids_N: torch.Tensor, num_domains: int
) -> torch.Tensor:
    """Return the fixed-point sums of loss-bearing tokens.

    Args:
        nll_N: float32 [N], negative log likelihood in nats; callers drop ignored tokens first.
        objective_N: float32 [N], the differentiated objective in nats.
        domain_ids_N: int64 [N]; a token with an id outside 0..num_domains-1 is invalid, in domain 0.
        num_domains: K.

    Returns:
        int64 [K, 5].
    """
    is_known_N = (domain_ids_N >= 0) & (domain_ids_N < num_domains)
    is_valid_N = is_known_N & (nll_N.abs() <= LOSS_LIMIT) & (objective_N.abs() <= LOSS_LIMIT)
    nll_N, objective_N = nll_N.where(is_valid_N, 0.0).double(), objective_N.where(is_valid_N, 0.0).double()
    columns_N5 = torch.stack(
        (
            (nll_N * LOSS_SCALE).round(),
            ((nll_N * nll_N).clamp(max=SQUARE_LIMIT) * SQUARE_SCALE).round(),
            (objective_N * LOSS_SCALE).round(),
            torch.ones_like(nll_N),
            (~is_valid_N).double(),
        ),
        dim=1,
    ).long()
    bins_K5 = torch.zeros(num_domains, NUM_COLUMNS, dtype=torch.int64, device=nll_N.device)
    return bins_K5.index_add_(0, domain_ids_N.where(is_known_N, 0), columns_N5)


def weighted_loss(bins_K5: torch.Tensor, loss_weights_K: torch.Tensor) -> torch.Tensor:
    """Return the sum over domains of weight times objective, a float32 scalar; NaN if any token is invalid."""
    sums_K = bins_K5[:, OBJECTIVE].double() / LOSS_SCALE
    sums_K = sums_K.masked_fill(bins_K5[:, INVALID] > 0, float("nan"))
    return (sums_K * loss_weights_K.double()).sum().float()


def statistics_of(bins_K5: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (loss_sum_K, loss_sq_sum_K, num_loss_tokens_K) as float64, float64 and int64.

    The sums of an absent domain are exactly zero; those of a domain with an invalid token are NaN.
    """
    is_invalid_K = bins_K5[:, INVALID] > 0
    loss_sum_K = (bins_K5[:, NLL].double() / LOSS_SCALE).masked_fill(is_invalid_K, float("nan"))
    loss_sq_sum_K = (bins_K5[:, NLL_SQ].double() / SQUARE_SCALE).masked_fill(is_invalid_K, float("nan"))
    return loss_sum_K, loss_sq_sum_K, bins_K5[:, COUNT].clone()
