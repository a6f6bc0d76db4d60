"""Measure held-out losses, example by example, over all ranks.

Every validation example has a number. Each rank adds its examples' token losses into one vector, and one all-reduce of
that vector gives all ranks the same sums, from which domain means, standard errors and paired changes follow. The
loader gives every rank the same number of micro-batches, so evaluation cannot hang.

Shape legend: **E** validation examples, **N** positions of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch

from versatune_ds.data.batch import Batch
from versatune_ds.data.validation_loader import ValidationLoader
from versatune_ds.distributed import sum_over_ranks
from versatune_ds.engine.engine import Engine
from versatune_ds.mixture.statistics import ExampleLosses


def measure_validation(engine: Engine, loader: ValidationLoader, *, num_domains: int) -> ExampleLosses:
    """Return the summed loss of every validation example, the same on all ranks.

    Communication: the forward passes' own (ZeRO-3 gathers weights), then one all-reduce of E float64 numbers.
    """
    return ExampleLosses(
        loss_sum_E=sum_over_ranks(sum_by_example(engine.token_losses, loader, num_examples=loader.num_examples)),
        num_loss_tokens_E=loader.example_num_loss_tokens,
        domain_ids_E=loader.example_domain_ids,
        num_domains=num_domains,
    )


def sum_by_example(
    token_losses: Callable[[Batch], torch.Tensor],
    batches: Iterable[tuple[Batch, torch.Tensor]],
    *,
    num_examples: int,
) -> np.ndarray:
    """Return the summed loss of every example this rank evaluates, 0 for those of the others: float64 [E].

    Args:
        token_losses: Returns the loss of every position of a micro-batch, [N], zero where a position bears no loss.
        batches: This rank's micro-batches, each with the example of every token, as a ValidationLoader gives them.
        num_examples: Examples over all domains and ranks, E.
    """
    loss_sum_E: torch.Tensor | None = None
    for batch, example_ids in batches:
        token_losses_N = token_losses(batch).double()
        if loss_sum_E is None:
            loss_sum_E = torch.zeros(num_examples, dtype=torch.float64, device=token_losses_N.device)
        example_ids_N = example_ids.reshape(-1).to(token_losses_N.device)
        is_example_N = example_ids_N >= 0
        loss_sum_E.index_add_(0, example_ids_N[is_example_N], token_losses_N[is_example_N])
    return np.zeros(num_examples) if loss_sum_E is None else loss_sum_E.cpu().numpy()
