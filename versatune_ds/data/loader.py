"""Load the batches of a run: plan every step and collate this rank's rows, in the background.

The training loop gives the weights of each step a few steps ahead. A thread plans the entire global batch, the same on
every rank, and collates this rank's rows. There are no worker processes, nothing is sent between ranks, and a change of
weights is only a different argument to the next plan.

    rows of a batch:  row = (micro_step * world_size + rank) * rows_per_micro_batch + slot
    2 ranks, 2 micro-steps, 1 row each:  (micro-step, rank) of rows 0 1 2 3 is (0, 0) (0, 1) (1, 0) (1, 1)

The saved position is K draw counters and K deficits after a step, the same on every rank, with the seed, domains and
sizes to which they belong. Batches planned ahead are not saved: they are planned again.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from versatune_ds.data.background import BackgroundThread
from versatune_ds.data.batch import Batch
from versatune_ds.data.collate import Shards, collate_rows
from versatune_ds.data.order.permutation import DomainOrder, probe_of
from versatune_ds.data.order.plan import PlanSettings, StepPlan, plan_step
from versatune_ds.data.order.sampler import SamplerState
from versatune_ds.data.row_slices import RowShare, row_share, slice_batch
from versatune_ds.domains import DomainSet
from versatune_ds.log import SHARED

logger = logging.getLogger(__name__)

STATE_VERSION = 1


DataIdentity = dict[str, Any]
"""What the counters of a saved position belong to, as JSON values: seed, unit of the deficits, names and sizes of the
domains, and a digest of up to 1024 lengths of each, which changes if the data is tokenised differently."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """The data of one optimizer step on one rank."""

    plan: StepPlan
    """The global batch, the same on every rank."""
    micro_batches: tuple[Batch, ...]
    """This rank's rows, one Batch per micro-step."""
    wait_seconds: float
    """How long the training loop waited for it."""


def orders_of(shards: Sequence[Shards], *, seed: int, domain_set: DomainSet) -> tuple[DomainOrder, ...]:
    """Return the order of every domain.

    Raises:
        ValueError: If shards and domains differ in number, names or order.
    """
    names = tuple(shard.name for shard in shards)
    if names != domain_set.names:
        raise ValueError(
            f"shards of {', '.join(names)}: expected those of {', '.join(domain_set.names)}, in this order"
        )
    return tuple(
        DomainOrder.of(shard.name, seed=seed, lengths=shard.lengths, loss_lengths=shard.loss_lengths)
        for shard in shards
    )


PREFETCH = 2
"""Steps planned ahead by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderSettings(PlanSettings):
    """What a `MixtureLoader` is built from besides shards: the plan's settings, and this rank's part of a batch."""

    seed: int
    """Seed of the order; with the weights it alone decides what is drawn."""
    rows_per_micro_batch: int
    """Rows one rank takes through the model at a time; rows_per_batch is a multiple of world_size times this."""
    rank: int = 0
    world_size: int = 1
    sequence_parallel: int = 1
    """Neighbouring ranks that share their rows, with a slice of each. In the module's formula the group stands for the
    rank, and the number of groups for the world size."""
    pad_token_id: int = 0
    prefetch: int = PREFETCH
    """Steps planned ahead of the one that is taken."""

    def __post_init__(self) -> None:
        """Raise ValueError if ranks would not get the same number of rows, or the rank is not below the world size."""
        PlanSettings.__post_init__(self)  # super() does not find a class with slots, which dataclass makes anew
        rows_per_micro_step = self.share.num_groups * self.rows_per_micro_batch
        if self.rows_per_batch % rows_per_micro_step or not 0 <= self.rank < self.world_size:
            shared = f" / sequence_parallel {self.sequence_parallel}" if self.sequence_parallel > 1 else ""
            raise ValueError(
                f"rows_per_batch {self.rows_per_batch}, rank {self.rank}: expected a multiple of world_size "
                f"{self.world_size}{shared} x rows_per_micro_batch {self.rows_per_micro_batch} = "
                f"{rows_per_micro_step}, and a rank below the world size"
            )

    @property
    def share(self) -> RowShare:
        """Return this rank's share of the rows."""
        return row_share(rank=self.rank, world_size=self.world_size, num_slices=self.sequence_parallel)

    def first_rows(self) -> range:
        """Return the row of the global batch at which each of this rank's micro-batches starts."""
        rows_per_micro_step = self.share.num_groups * self.rows_per_micro_batch
        return range(self.share.group * self.rows_per_micro_batch, self.rows_per_batch, rows_per_micro_step)


class MixtureLoader:
    """Plan and collate the batches of a run.

    When the data ends (`max_epochs_per_domain`), the last batch is the one with room left (`plan.is_last`); `take` of
    the step after it raises DataEndsError.

    Args:
        shards: Tokenised examples, one per domain in the order of `domain_set`.
        domain_set: The run's domains.
        settings: Batch, order, and this rank's part.

    Raises:
        ValueError: If shards and domains do not match.
    """

    def __init__(self, shards: Sequence[Shards], *, domain_set: DomainSet, settings: LoaderSettings) -> None:
        self.settings = settings
        self.prefetch = settings.prefetch
        self.orders = orders_of(shards, seed=settings.seed, domain_set=domain_set)
        self._shards = shards
        self._first_rows = settings.first_rows()
        self._identity = identity_of(self.orders, seed=settings.seed, weight_unit=settings.weight_unit)
        self._thread = BackgroundThread(name="versatune-data")
        self._planned: dict[int, Future[tuple[StepPlan, tuple[Batch, ...]]]] = {}
        self._last_planned: int | None = None
        self._has_begun = False
        self._exhausted: set[int] = set()
        self._taken_step = -1
        self._taken_state = self._planning_state = SamplerState.start(len(domain_set))

    def plan(self, step: int, weights_K: np.ndarray) -> None:
        """Plan and collate a step in the background; returns at once.

        Args:
            step: The step after the one planned last.
            weights_K: float64 [K], weights of this step. A step is never planned again.

        Raises:
            RuntimeError: If a step is skipped or planned twice, or if more than prefetch + 1 steps are planned but not
                taken.
        """
        if self._last_planned is not None and step != self._last_planned + 1:
            raise RuntimeError(
                f"step {step} planned after step {self._last_planned}; expected {self._last_planned + 1}"
            )
        if len(self._planned) > self.prefetch:
            raise RuntimeError(f"step {step}: {len(self._planned)} steps are planned but not taken; take one first")
        self._last_planned, self._has_begun = step, True
        weights_K = np.array(weights_K, dtype=np.float64)
        self._planned[step] = self._thread.submit(lambda: self._make(step, weights_K))

    def take(self, step: int) -> StepBatch:
        """Return a planned step; wait if it is not ready.

        Raises:
            RuntimeError: If the step was not planned.
            DataEndsError: If there is no data left for it.
            Exception: If planning or reading it failed.
        """
        if step not in self._planned:
            raise RuntimeError(f"step {step} taken but not planned; planned: {sorted(self._planned)}")
        started = time.perf_counter()
        plan, micro_batches = self._planned.pop(step).result()
        waited = time.perf_counter() - started
        self._taken_step, self._taken_state = step, plan.state_after
        self._report_exhausted(plan)
        return StepBatch(plan=plan, micro_batches=micro_batches, wait_seconds=waited)

    def _report_exhausted(self, plan: StepPlan) -> None:
        """Log, once per domain, that it reached `max_epochs_per_domain`."""
        for domain_id in sorted(set(plan.exhausted) - self._exhausted):
            self._exhausted.add(domain_id)
            name = self.orders[domain_id].name
            logger.warning(
                "step %d: domain %r reached max_epochs_per_domain; its share goes to the others",
                plan.step,
                name,
                extra=SHARED,
            )

    def _make(self, step: int, weights_K: np.ndarray) -> tuple[StepPlan, tuple[Batch, ...]]:
        """Plan a step and collate this rank's rows; called in the background thread, in step order."""
        plan = plan_step(self._planning_state, weights_K, step=step, orders=self.orders, settings=self.settings)
        self._planning_state = plan.state_after
        return plan, tuple(self._collate(plan, first_row) for first_row in self._first_rows)

    def _collate(self, plan: StepPlan, first_row: int) -> Batch:
        """Return the micro-batch that begins at a row of the global batch, or this rank's slice of it."""
        batch = collate_rows(
            plan.placement,
            first_row=first_row,
            num_rows=self.settings.rows_per_micro_batch,
            row_tokens=plan.row_tokens,
            shards=self._shards,
            pad_token_id=self.settings.pad_token_id,
        )
        return slice_batch(batch, self.settings.share)

    def state_dict(self, step: int) -> dict[str, Any]:
        """Return the position in the data after a step, without steps planned ahead: JSON, the same on every rank.

        Args:
            step: The step taken last; -1 or any step if none was taken yet.

        Raises:
            RuntimeError: If another step was taken last.
        """
        if self._taken_step not in (-1, step):
            raise RuntimeError(f"data state of step {step} requested after step {self._taken_step} was taken")
        return state_to_json(self._taken_state, step=step, identity=self._identity)

    def epochs_K(self) -> np.ndarray:
        """Return the number of passes over each domain that the batches taken so far make, float64 [K]."""
        sizes_K = np.array([order.size for order in self.orders], dtype=np.float64)
        return np.asarray(self._taken_state.draws_K) / np.maximum(sizes_K, 1)

    def load_state_dict(self, values: dict[str, Any]) -> None:
        """Continue after the step of a saved position; call it before `plan`.

        Raises:
            RuntimeError: If the position belongs to other data, with one line for each difference, or if planning has
                begun.
        """
        if self._has_begun:
            raise RuntimeError(f"data state loaded after step {self._last_planned} was planned; load it first")
        state, step = state_from_json(values, identity=self._identity)
        self._taken_state = self._planning_state = state
        self._taken_step = self._last_planned = step
        logger.info("data continues after step %d, draw %d", step, int(state.draws_K.sum()))

    def close(self) -> None:
        """Discard the planned steps and end the thread."""
        self._planned.clear()
        self._thread.close()


def identity_of(orders: Sequence[DomainOrder], *, seed: int, weight_unit: str) -> DataIdentity:
    """Return the identity of a run's data; a run and the run that resumes it have the same."""
    hasher = hashlib.blake2b(digest_size=16)
    for order in orders:
        hasher.update(np.ascontiguousarray(probe_of(order.lengths), dtype="<i4").tobytes())
    return {
        "seed": seed,
        "weight_unit": weight_unit,
        "domains": [order.name for order in orders],
        "num_examples": [order.size for order in orders],
        "lengths_digest": hasher.hexdigest(),
    }


def state_to_json(state: SamplerState, *, step: int, identity: DataIdentity) -> dict[str, Any]:
    """Return the position after a step as JSON values."""
    counters = {"draws": state.draws_K.tolist(), "deficits": state.deficit_K.tolist()}
    return {"version": STATE_VERSION, "step": step, **identity, **counters}


def state_from_json(values: dict[str, Any], *, identity: DataIdentity) -> tuple[SamplerState, int]:
    """Return sampler state and step of a saved position.

    Raises:
        RuntimeError: If the position belongs to other data, seed or version, with one line for every difference.
    """
    differing = [
        f"data state: {key} is {values.get(key)!r}, expected {expected!r} as in this run"
        for key, expected in {"version": STATE_VERSION, **identity}.items()
        if values.get(key) != expected
    ]
    if differing:
        raise RuntimeError("\n".join([*differing, "continue with the data of the checkpoint, or start a new run"]))
    draws_K = np.array(values["draws"], dtype=np.int64)
    return SamplerState(draws_K=draws_K, deficit_K=np.array(values["deficits"], dtype=np.int64)), int(values["step"])
