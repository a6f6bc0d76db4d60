"""Define the checkpoint section of a recipe: when state is saved, and how much of it is kept."""

from __future__ import annotations

from pydantic import Field

from versatune_ds.config.section import Section


class CheckpointConfig(Section):
    """Set when state is saved."""

    every: int | None = Field(default=None, ge=1)
    """Optimizer steps between checkpoints; by default only at the end and at a signal."""
    keep: int = Field(default=2, ge=1)
    """Newest checkpoints kept."""
