"""Name plans in a comparison: its keys under `plans`, and the mark {plan:NAME} in the values of a run.

A plan is what `versatune plan` writes. It belongs to the starting point: comparisons of one base model share it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import Field, create_model

from versatune_ds.config.section import Section
from versatune_ds.mixture.planning.goal import Purpose

_MARK = re.compile(r"\{plan:([^{}]*)\}")


class _PlanKeys(Section):
    """Options of `versatune plan` beside `--for`."""

    bound: dict[str, float] = Field(default={})
    """Largest rise of a domain's loss, as a share of the base model's."""
    bound_all: float | None = None
    """The same for all other domains."""
    planner: str | None = None
    """How losses are predicted."""
    budget_steps: int | None = Field(default=None, ge=1)
    """Steps of the run that is planned; by default those of the shared recipe."""


MixturePlan = create_model(  # `for` is a word of Python's, so that no class body can have such a field
    "MixturePlan",
    __base__=_PlanKeys,
    **{"for": (Purpose, Field(default="balanced", description="Purpose of the plan."))},
)
"""One entry of `plans`: the options of `versatune plan`, named as on its command line."""


def purpose_of(keys: Section) -> Purpose:
    """Return the value of `for`."""
    return getattr(keys, "for")


def arguments_of(keys: Section) -> list[str]:
    """Return the options as `versatune plan` takes them."""
    words = ["--for", purpose_of(keys)]
    for option, value in (
        ("--bound", ",".join(f"{name}={bound}" for name, bound in keys.bound.items()) or None),
        ("--bound-all", keys.bound_all),
        ("--planner", keys.planner),
        ("--budget-steps", keys.budget_steps),
    ):
        if value is not None:
            words.append(f"{option}={value}")  # one word, since a bound may begin with a minus sign
    return words


def plan_names(value: Any) -> Iterator[str]:
    """Yield the names of the plans that a value names, at any depth."""
    if isinstance(value, str):
        yield from _MARK.findall(value)
    elif isinstance(value, dict):
        for item in value.values():
            yield from plan_names(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from plan_names(item)


def with_plan_files(value: Any, file_of: Callable[[str], Path]) -> Any:
    """Return a value in which each {plan:NAME} is replaced by the plan's file."""
    if isinstance(value, str) and _MARK.search(value):
        return _MARK.sub(lambda mark: str(file_of(mark.group(1))), value)
    if isinstance(value, dict):
        return {key: with_plan_files(item, file_of) for key, item in value.items()}
    return value
