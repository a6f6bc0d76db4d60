"""Define the validation section of a recipe: how the losses that steer are measured."""

from __future__ import annotations

from pydantic import Field

from versatune_ds.config.section import Section


class ValidationConfig(Section):
    """Set how the losses that steer are measured."""

    max_examples_per_domain: int | None = Field(default=200, ge=2)
    """Held-out examples a domain used while training; always the same ones. None uses all."""
    rows_per_micro_batch: int | None = Field(default=None, ge=1)
    """Packed rows one process evaluates at a time; as in training by default."""
