"""Measure held-out losses while training, on a fixed set of examples that is chosen at the first measurement.

The first measurement is of all examples the recipe allows. It shows how much a domain's losses scatter, hence how many
examples give the requested error. The chosen ones are among those measured, so the same measurement is the baseline,
and every later one is paired with it.

Every example has a number. Each rank adds its examples' token losses into one vector, and one all-reduce of that vector
gives all ranks the same sums, from which domain means, standard errors and paired changes follow. The loader gives
every rank the same number of micro-batches, so a measurement cannot hang.

Shape legend: **K** domains, **E** validation examples, **N** positions of a micro-batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np
import torch

from versatune_ds.config import ValidationConfig
from versatune_ds.data.batch import Batch
from versatune_ds.data.collate import Shards
from versatune_ds.data.encoding.tokenizer import pad_token_id
from versatune_ds.data.validation_loader import ExampleSubset, ValidationLoader
from versatune_ds.distributed import World, from_rank_zero, sum_over_ranks
from versatune_ds.engine.engine import Engine
from versatune_ds.log import SHARED
from versatune_ds.mixture.statistics import ExampleLosses
from versatune_ds.model.domain_model import DomainModel, model_inputs
from versatune_ds.progress import with_progress
from versatune_ds.text_table import text_table
from versatune_ds.training.prepared_data import RunSetup

logger = logging.getLogger(__name__)

Subsets = Sequence[ExampleSubset]


class HeldOutExamples:
    """Choose held-out examples at the first measurement, and measure the same ones every time.

    Args:
        domains: The held-out examples of each domain, all of them.
        make_loader: Returns this rank's loader of some examples of each domain.
    """

    def __init__(
        self,
        domains: Sequence[Shards],
        *,
        settings: ValidationConfig,
        seed: int,
        make_loader: Callable[[Subsets], ValidationLoader],
        world: World,
    ) -> None:
        self._domains = domains
        self._settings = settings
        self._seed = seed
        self._make_loader = make_loader
        self._world = world
        self._is_to_choose = settings.target_standard_error is not None
        self._num_chosen_K: list[int] | None = None
        self._examples = subsets(domains, max_examples=settings.max_examples_per_domain, seed=seed)
        self.loader = make_loader(self._examples)

    def measure(self, engine: Engine) -> ExampleLosses:
        """Return the losses of the examples, the same on every rank; the first measurement may choose among them.

        Communication: the measurement's own; where it chooses, rank 0's choice is broadcast.
        """
        losses = measure_validation(engine, self.loader, num_domains=len(self._domains))
        return self._choose(losses) if self._is_to_choose else losses

    def _choose(self, losses: ExampleLosses) -> ExampleLosses:
        """Keep as many examples as the requested error needs, and return their losses. Rank 0 decides how many."""
        target = self._settings.target_standard_error
        assert target is not None, "called only where there is a target"
        needed_K = losses.num_examples_for(target, min_examples=self._settings.min_examples_per_domain)
        num_chosen_K = from_rank_zero(needed_K.tolist, self._world)
        before = self._examples
        self._keep(num_chosen_K)
        kept = losses.select(_places(self._examples, within=before))
        logger.info("held-out examples\n%s", choice_table(losses, kept, target=target, examples=before))
        return kept

    def _keep(self, num_chosen_K: list[int]) -> None:
        """Measure `num_chosen_K` examples of each domain from now on."""
        self._is_to_choose, self._num_chosen_K = False, num_chosen_K
        self._examples = [
            ExampleSubset(domain, max_examples=count, seed=self._seed)
            for domain, count in zip(self._domains, num_chosen_K, strict=True)
        ]
        self.loader = self._make_loader(self._examples)

    def _reasons(self) -> list[float | int | None]:
        """Return the settings that decide how many examples are chosen."""
        settings = self._settings
        fewest = None if settings.target_standard_error is None else settings.min_examples_per_domain
        return [settings.target_standard_error, fewest, settings.max_examples_per_domain]

    def state_dict(self) -> dict[str, Any]:
        """Return JSON-able state: the number of examples chosen of each domain (null: all), and the settings for it."""
        return {"num_chosen": self._num_chosen_K, "chosen_for": self._reasons()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore saved state, unless it was chosen under other settings: the next measurement then chooses again.

        A state of an earlier version lacks those settings, and is kept.
        """
        if state.get("chosen_for", self._reasons()) != self._reasons():
            logger.warning(
                "validation: its settings changed since the checkpoint; held-out examples are chosen again",
                extra=SHARED,
            )
            return
        self._is_to_choose = False
        if state["num_chosen"] is not None:
            self._keep(state["num_chosen"])


def measure_validation(engine: Engine, loader: ValidationLoader, *, num_domains: int) -> ExampleLosses:
    """Return the summed loss of every validation example, the same on all ranks.

    Communication: the forward passes' own (ZeRO-3 gathers weights), then one all-reduce of E float64 numbers.
    """
    batches = with_progress(loader, num_items=loader.num_micro_batches, what="held-out rows: %s batches")
    return ExampleLosses(
        loss_sum_E=sum_over_ranks(sum_by_example(engine.token_losses, batches, num_examples=loader.num_examples)),
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


def losses_without_engine(model: DomainModel, loader: ValidationLoader) -> np.ndarray:
    """Return the summed loss of each of this process's examples, 0 for the others: float64 [E]. No communication."""
    device = next(model.parameters()).device

    def token_losses(batch: Batch) -> torch.Tensor:
        return model(**model_inputs(batch, device=device), per_token=True).token_losses_N

    with torch.no_grad():
        batches = with_progress(loader, num_items=loader.num_micro_batches, what="held-out rows: %s batches")
        return sum_by_example(token_losses, batches, num_examples=loader.num_examples)


def held_out_examples(setup: RunSetup) -> HeldOutExamples:
    """Return the held-out examples of a run."""
    return HeldOutExamples(
        setup.data.valid,
        settings=setup.config.validation,
        seed=setup.config.run.seed,
        make_loader=lambda examples: _loader_of(examples, setup),
        world=setup.world,
    )


def validation_loader(setup: RunSetup, *, split: Literal["train", "valid"] = "valid") -> ValidationLoader:
    """Return a loader of at most `validation.max_examples_per_domain` examples of each domain of a split."""
    domains = setup.data.valid if split == "valid" else setup.data.train
    max_examples = setup.config.validation.max_examples_per_domain
    return _loader_of(subsets(domains, max_examples=max_examples, seed=setup.config.run.seed), setup)


def subsets(domains: Sequence[Shards], *, max_examples: int | None, seed: int) -> list[ExampleSubset]:
    """Return at most `max_examples` examples of each domain, chosen by the seed; None returns all."""
    return [
        ExampleSubset(part, max_examples=part.num_examples if max_examples is None else max_examples, seed=seed)
        for part in domains
    ]


def _loader_of(examples: Subsets, setup: RunSetup) -> ValidationLoader:
    config = setup.config
    return ValidationLoader(
        examples,
        domain_set=setup.domain_set,
        rows_per_micro_batch=config.rows_evaluated_at_once,
        row_tokens=config.data.row_tokens,
        rank=setup.world.rank,
        world_size=setup.world.world_size,
        sequence_parallel=config.train.sequence_parallel,
        pad_token_id=pad_token_id(setup.tokenizer),
    )


def _places(chosen: Subsets, *, within: Subsets) -> np.ndarray:
    """Return the numbers, among the examples of `within` domain by domain, of those that were chosen."""
    first_K = np.cumsum([0, *(whole.num_examples for whole in within)])
    places = [
        first + np.searchsorted(whole.indices, part.indices)
        for first, whole, part in zip(first_K[:-1], within, chosen, strict=True)
    ]
    return np.concatenate(places)


def choice_table(measured: ExampleLosses, kept: ExampleLosses, *, target: float, examples: Subsets) -> str:
    """Return one line a domain: examples measured and kept, the error of each, and whether the target is met."""
    header = ("domain", "measured", "error", "kept", "error", f"(asked for: {target:g} nats)")
    columns = (measured.num_examples(), measured.standard_error(), kept.num_examples(), kept.standard_error())
    rows = []
    for part, num_measured, error, num_kept, kept_error in zip(examples, *columns, strict=True):
        is_short = num_kept == num_measured and not error <= target
        mark = "all there are" if is_short and num_kept else ""
        rows.append((part.name, f"{num_measured:,}", f"{error:.4f}", f"{num_kept:,}", f"{kept_error:.4f}", mark))
    return text_table(header, rows)
