"""Define the questions that a run asks while it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from versatune_ds.config.section import ExpandedPath, Section


def _as_list(value: Any) -> Any:
    """Return one path as a list of one."""
    return (value,) if isinstance(value, str | Path) else value


class TasksConfig(Section):
    """Questions that a run asks while it trains, as `versatune evaluate` does once; they decide nothing."""

    every_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps between two times that they are asked; they are asked before the first step and after the last
    too. null asks them then alone."""
    choices: Annotated[tuple[ExpandedPath, ...], BeforeValidator(_as_list)] = ()
    """Multiple choice: files DOMAIN.jsonl, or folders of them, with lines {"question", "choices", "answer"}."""
    exact: int = Field(default=0, ge=0)
    """Held-out examples of each domain whose last answer is generated and compared with the example's."""
    limit: int | None = Field(default=None, ge=1)
    """Most multiple-choice questions of each domain, the first ones of its file; null asks all."""
    budget_seconds: float | None = Field(default=None, gt=0)
    """Seconds after which no further batch of questions is begun, by each process's clock: what was asked until then is
    reported, with how many questions. They are asked in an order drawn once, all domains in turn. null asks all."""

    @model_validator(mode="after")
    def _asks_something(self) -> TasksConfig:
        if not self.choices and not self.exact:
            raise ValueError("validation.tasks: nothing is asked; give files of multiple choice (choices), or exact")
        return self
