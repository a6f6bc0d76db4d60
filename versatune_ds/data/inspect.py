"""Show what a run will train on, row by row, without training.

The rows come from the same plan as in training, so outputs can be compared byte by byte: without the rank they are the
same for every number of ranks and for every step at which a run resumes.

Shape legend: **K** domains, **T** tokens per row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from versatune_ds.data.batch import IGNORE_INDEX, Batch
from versatune_ds.data.collate import Shards, collate_rows
from versatune_ds.data.order.permutation import DomainOrder
from versatune_ds.data.order.plan import PlanSettings, StepPlan, plan_step
from versatune_ds.data.order.sampler import SamplerState
from versatune_ds.domains import DomainSet

MASK_OPEN, MASK_CLOSE = "\u27e6", "\u27e7"
LEGEND = f"{MASK_OPEN} {MASK_CLOSE} encloses what bears no loss: the model reads it, and learns to write the rest"
"""Brackets around text that bears no loss; they hardly occur in data."""


def iterate_plans(
    state: SamplerState,
    *,
    orders: Sequence[DomainOrder],
    settings: PlanSettings,
    first_step: int,
    last_step: int,
    weights_at: Callable[[int], np.ndarray],
) -> Iterator[StepPlan]:
    """Plan steps first_step..last_step from a state, until the data ends.

    Args:
        state: State before `first_step`; `SamplerState.start` before the first step of a run.
        orders: One per domain, in id order.
        settings: Shape of a batch.
        first_step: First step planned.
        last_step: Last step planned.
        weights_at: Returns the weights of a step, float64 [K].
    """
    for step in range(first_step, last_step + 1):
        plan = plan_step(state, weights_at(step), step=step, orders=orders, settings=settings)
        yield plan
        if plan.is_last:
            return
        state = plan.state_after


def describe_rows(
    plans: Iterable[StepPlan],
    *,
    domain_set: DomainSet,
    world_size: int | None = None,
    rows_per_micro_batch: int = 1,
    sequence_parallel: int = 1,
) -> Iterator[dict[str, Any]]:
    """Describe every packed row of every plan as JSON-able values.

    Args:
        plans: Plans in step order.
        domain_set: The run's domains.
        world_size: Number of ranks; None leaves the rank out.
        rows_per_micro_batch: Rows of one rank's micro-batch.
        sequence_parallel: Neighbouring ranks that share a row; the first of them is shown.

    Yields:
        {"step", "row", "rank", "examples": [[domain, epoch, index, tokens], ...], "fill"}; a row's examples from left
        to right.
    """
    for plan in plans:
        place = plan.placement
        names = [domain_set.names[domain_id] for domain_id in place.domain_id_E]
        columns = (plan.epoch_E.tolist(), place.index_E.tolist(), place.length_E.tolist())
        examples = [list(example) for example in zip(names, *columns, strict=True)]
        for row in range(plan.num_rows):
            inside = examples[place.rows(row, row + 1)]
            rank = {}
            if world_size is not None:
                group = row // rows_per_micro_batch % (world_size // sequence_parallel)
                rank = {"rank": group * sequence_parallel}
            fill = round(sum(example[3] for example in inside) / plan.row_tokens, 6)
            yield {"step": plan.step, "row": row, **rank, "examples": inside, "fill": fill}


def render_row(
    plan: StepPlan,
    row: int,
    *,
    shards: Sequence[Shards],
    domain_set: DomainSet,
    decode: Callable[[list[int]], str],
) -> str:
    """Return the text of a packed row as the model sees it, the parts that bear no loss in brackets.

    Args:
        plan: The step's plan.
        row: Row of the batch.
        shards: One per domain, in id order.
        domain_set: The run's domains.
        decode: Turns token ids into text, special tokens included.

    Returns:
        One block of lines per example: a heading with domain, epoch, index and tokens, then its text. The text is
        that of the data: escape it before it goes to a terminal.
    """
    batch = collate_rows(
        plan.placement,
        first_row=row,
        num_rows=1,
        row_tokens=plan.row_tokens,
        shards=shards,
        pad_token_id=0,
    )
    examples = plan.placement.rows(row, row + 1)
    return "\n".join(
        _render_example(plan, e, batch, domain_set=domain_set, decode=decode)
        for e in range(*examples.indices(len(plan.epoch_E)))
    )


def _render_example(
    plan: StepPlan, e: int, batch: Batch, *, domain_set: DomainSet, decode: Callable[[list[int]], str]
) -> str:
    place = plan.placement
    begin, length = int(place.offset_E[e]), int(place.length_E[e])
    input_ids = batch.input_ids[0, begin : begin + length].tolist()
    # labels[t] is the target of position t, so token t bears loss if labels[t - 1] is not ignored.
    is_loss = [False, *(batch.labels[0, begin : begin + length - 1] != IGNORE_INDEX).tolist()]
    heading = f"--- {domain_set.names[place.domain_id_E[e]]} epoch {plan.epoch_E[e]} example {place.index_E[e]}"
    return f"{heading}: {length} tokens\n{mark_masked(input_ids, is_loss, decode)}"


def mark_masked(input_ids: Sequence[int], is_loss: Sequence[bool], decode: Callable[[list[int]], str]) -> str:
    """Return text with tokens that bear no loss in brackets; consecutive tokens are decoded together."""
    borders = [t for t in range(len(input_ids)) if t == 0 or is_loss[t] != is_loss[t - 1]]
    parts = []
    for begin, end in zip(borders, [*borders[1:], len(input_ids)], strict=True):
        text = decode(list(input_ids[begin:end]))
        parts.append(text if is_loss[begin] else f"{MASK_OPEN}{text}{MASK_CLOSE}")
    return "".join(parts)
