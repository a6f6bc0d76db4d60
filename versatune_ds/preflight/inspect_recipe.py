"""Show the packed rows a recipe, or a run, trains on: as JSON lines, or as text.

The rows are planned by the code that plans training, from lengths alone. So the lines of two calls can be compared byte
by byte: world size and resume point change nothing but the rank.
"""

from __future__ import annotations

import json
import logging
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from versatune_ds.config import RunConfig
from versatune_ds.config.row_groups import check_ranks_divide
from versatune_ds.data.inspect import LEGEND, describe_rows, iterate_plans, render_row
from versatune_ds.data.loader import identity_of, orders_of, state_from_json, state_to_json
from versatune_ds.data.order.plan import PlanSettings, StepPlan
from versatune_ds.data.order.sampler import SamplerState
from versatune_ds.data.prepare.domains import PreparedData
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.offline.recorded_losses import recorded_decisions
from versatune_ds.mixture.schedule import Schedule
from versatune_ds.training.length.run_length import with_steps
from versatune_ds.training.mixture_start import recipe_weights
from versatune_ds.training.prepared_data import load_or_train_tokenizer, prepare_recipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRange:
    """The steps after step `after` up to step `last`; 0:20 are steps 1 to 20."""

    after: int
    last: int

    @classmethod
    def parse(cls, text: str) -> StepRange:
        """Return the range of a text `AFTER:LAST`; raise ValueError if it is none."""
        after, colon, last = text.partition(":")
        if not (colon and after.isdecimal() and last.isdecimal() and int(after) < int(last)):
            raise ValueError(f"--steps {text}: expected AFTER:LAST, for example 0:20 for the first 20 steps")
        return cls(after=int(after), last=int(last))


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What to show.

    Attributes:
        steps: Steps whose rows are shown.
        world_size: Processes that share the rows; None leaves the rank out.
        resume_at: Step after which the state of the data goes through JSON, as in a checkpoint; None never.
        run_dir: Run whose recorded decisions set the weights; None keeps the recipe's weights of step 0.
    """

    steps: StepRange
    world_size: int | None = None
    resume_at: int | None = None
    run_dir: Path | None = None


def inspect_as_json(config: RunConfig, inspection: Inspection) -> Iterator[str]:
    """Yield one JSON object a packed row: {step, row, rank, examples [[domain, epoch, index, tokens], ...], fill}.

    Raises:
        ValueError: If the recipe, its data, the run or the inspection is wrong.
    """
    _check(config, inspection)
    data = prepare_recipe(config)
    return (json.dumps(row) for _, row in _rows(config, data, inspection))


def inspect_as_text(config: RunConfig, inspection: Inspection) -> Iterator[str]:
    """Yield what the brackets mean, then every packed row as the model reads it, control characters escaped.

    Raises:
        ValueError: As `inspect_as_json`.
    """
    _check(config, inspection)
    data = prepare_recipe(config)
    decode = terminal_decoder(load_or_train_tokenizer(config))
    yield LEGEND
    for plan, row in _rows(config, data, inspection):
        heading = " ".join(f"{key} {value}" for key, value in row.items() if key != "examples")
        text = render_row(plan, row["row"], shards=data.train, domain_set=data.domain_set, decode=decode)
        yield f"=== {heading}\n{text}"


def _rows(config: RunConfig, data: PreparedData, inspection: Inspection) -> Iterator[tuple[StepPlan, dict[str, Any]]]:
    """Yield the description of every row to show, with the plan of its step."""
    train = config.train
    places = {"world_size": inspection.world_size, "rows_per_micro_batch": train.rows_per_micro_batch}
    if inspection.world_size is not None:
        places["sequence_parallel"] = train.sequence_parallel
    for plan in _plans(config, data, inspection):
        for row in describe_rows([plan], domain_set=data.domain_set, **places):
            yield plan, row


def escape_control_characters(text: str) -> str:
    """Return text that cannot control a terminal: control and format characters as escapes, line ends and tabs kept."""
    return "".join(
        character
        if character in "\n\t" or not unicodedata.category(character).startswith("C")
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def terminal_decoder(tokenizer: Any) -> Callable[[list[int]], str]:
    """Return a function that turns token ids into text that is safe for a terminal."""
    return lambda token_ids: escape_control_characters(tokenizer.decode(token_ids, clean_up_tokenization_spaces=False))


def _check(config: RunConfig, inspection: Inspection) -> None:
    """Raise ValueError if the rows do not divide among the processes, or the resume point is not within the steps."""
    num_slices = config.train.sequence_parallel
    world_size = num_slices if inspection.world_size is None else inspection.world_size
    check_ranks_divide(world_size=world_size, num_slices=num_slices)
    rows_per_micro_step = world_size // num_slices * config.train.rows_per_micro_batch
    if rows_per_micro_step < 1 or config.train.rows_per_batch % rows_per_micro_step:
        raise ValueError(
            f"--world-size {inspection.world_size}: train.rows_per_batch {config.train.rows_per_batch} is no multiple "
            f"of processes x train.rows_per_micro_batch {config.train.rows_per_micro_batch}"
        )
    if inspection.resume_at is not None and not 0 <= inspection.resume_at <= inspection.steps.last:
        raise ValueError(f"--resume-at {inspection.resume_at}: expected a step from 0 to {inspection.steps.last}")


def _plans(config: RunConfig, data: PreparedData, inspection: Inspection) -> Iterator[StepPlan]:
    """Yield the plans of the steps to show; those before them are planned too, from their lengths alone."""
    # What decides on the rows: the weights of every step, the order of the examples, the sizes.
    if inspection.run_dir is None:
        schedule = Schedule(recipe_weights(config, data))
    else:
        schedule = _recorded_schedule(inspection.run_dir, data.domain_set)
    orders = orders_of(data.train, seed=config.run.seed, domain_set=data.domain_set)
    settings = PlanSettings(
        rows_per_batch=config.train.rows_per_batch,
        row_tokens=config.data.row_tokens,
        weight_unit=config.mixture.weight_unit,
        max_epochs_per_domain=config.data.max_epochs_per_domain,
    )
    identity = identity_of(orders, seed=config.run.seed, weight_unit=config.mixture.weight_unit)
    # Plan every step up to the last one, in two parts around the resume point.
    last = min(inspection.steps.last, with_steps(config, data).train.steps)
    state, resume_at = SamplerState.start(len(data.domain_set)), min(inspection.resume_at or 0, last)
    for first_step, last_step in ((1, resume_at), (resume_at + 1, last)):
        text = json.dumps(state_to_json(state, step=first_step - 1, identity=identity))  # as in a checkpoint
        state, _ = state_from_json(json.loads(text), identity=identity)
        for plan in iterate_plans(
            state,
            orders=orders,
            settings=settings,
            first_step=first_step,
            last_step=last_step,
            weights_at=schedule.weights_at,
        ):
            state = plan.state_after
            if plan.step > inspection.steps.after:
                yield plan
            if plan.is_last:
                logger.warning("the data ends in step %d", plan.step)
                return


def _recorded_schedule(run_dir: Path, domain_set: DomainSet) -> Schedule:
    """Return the weights that a run's decisions set, step by step.

    Raises:
        ValueError: If the run has no decisions, or decided on other domains.
    """
    decisions = recorded_decisions(run_dir)
    schedule = Schedule(domain_set.from_dict(decisions[0].weights_before, what=f"decisions of {run_dir}"))
    for decision in decisions:
        schedule.append(decision.effective_step, decision.weights_K(domain_set))
    return schedule
