"""Run the models that `versatune reference` kept, and sums of them, on held-out rows.

Shape legend: **K** domains, **E** held-out examples, **M** loss tokens of all of them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from versatune_ds.data.batch import IGNORE_INDEX, Batch
from versatune_ds.data.validation_loader import ValidationLoader
from versatune_ds.mixture.statistics import ExampleLosses
from versatune_ds.model.domain_model import DomainModel, model_inputs
from versatune_ds.planning.kept_weights import KeptWeights, MergedWeights
from versatune_ds.progress import with_progress
from versatune_ds.training.held_out import losses_without_engine


class KeptModels:
    """The base model and the K kept ones, one of them in memory at a time.

    Args:
        causal_lm: The base model on its device; weights are written into it, and rows run through it.
        kept: The weights of each domain's run; None for a domain without one, which counts as the base model.
        loader: The held-out rows.

    Attributes:
        base: Losses of the base model.
        token_examples: int64 [M], the example of every loss token, in the order of `token_losses`.

    Raises:
        ValueError: If kept weights are not the model's, see `MergedWeights`, or memory does not suffice.
    """

    def __init__(self, causal_lm: Any, kept: Sequence[KeptWeights | None], loader: ValidationLoader) -> None:
        self._loader = loader
        with memory_advice():
            self._merged = MergedWeights(causal_lm, kept)
            self._model = DomainModel(causal_lm, num_domains=len(kept)).eval()
        self.base = self._present_losses()

    @property
    def num_domains(self) -> int:
        """Return K."""
        return self._model.num_domains

    def losses(self, weights_K: np.ndarray) -> ExampleLosses:
        """Return the held-out losses of the merge in a mixture; raise ValueError if memory does not suffice."""
        with memory_advice():
            self._merged.set_mixture(weights_K.tolist())
        return self._present_losses()

    def token_losses(self, weights_K: np.ndarray) -> np.ndarray:
        """Return the loss of every loss token of the merge in a mixture, float32 [M]."""
        device, loader = next(self._model.parameters()).device, self._loader
        parts = []
        with memory_advice(), torch.no_grad():
            self._merged.set_mixture(weights_K.tolist())
            for batch, _ in with_progress(loader, num_items=loader.num_micro_batches, what="held-out rows: %s batches"):
                losses_N = self._model(**model_inputs(batch, device=device), per_token=True).token_losses_N
                parts.append(losses_N.float().cpu()[_bears_loss(batch)])
        return torch.cat(parts).numpy()

    @functools.cached_property
    def token_examples(self) -> np.ndarray:
        """Return the example of every loss token, int64 [M]."""
        return torch.cat([example_ids.reshape(-1)[_bears_loss(batch)] for batch, example_ids in self._loader]).numpy()

    def _present_losses(self) -> ExampleLosses:
        """Return the held-out losses of the weights that are in memory."""
        with memory_advice():
            loss_sum_E = losses_without_engine(self._model, self._loader)
        return ExampleLosses(
            loss_sum_E=loss_sum_E,
            num_loss_tokens_E=self._loader.example_num_loss_tokens,
            domain_ids_E=self._loader.example_domain_ids,
            num_domains=self.num_domains,
        )


def _bears_loss(batch: Batch) -> torch.Tensor:
    return batch.labels.reshape(-1) != IGNORE_INDEX


@contextmanager
def memory_advice() -> Iterator[None]:
    """Turn torch's error for a full GPU into one line with what to do."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise ValueError(
            "--planner: out of GPU memory; set validation.rows_per_micro_batch=1, or DS_ACCELERATOR=cpu in the "
            "environment, or plan with --planner transfer, which runs no model"
        ) from None
