"""Define the checkpoint and resume sections of a recipe: when state is saved, and what may differ when a run resumes.

What changes the result of a run must be allowed by name; what only changes where it runs is allowed by default.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from versatune_ds.config.section import Section

Difference = Literal["data", "tokenizer", "mixture", "world_size", "zero_stage"]
"""What may differ between a run and the checkpoint it resumes from."""


class CheckpointConfig(Section):
    """When state is saved, and how many checkpoints are kept."""

    every: int | None = Field(default=None, ge=1)
    """Optimizer steps between checkpoints. By default one is saved only at the end and when a signal stops the run."""
    every_minutes: float | None = Field(default=None, gt=0)
    """Minutes between checkpoints, in addition to `every`; rank 0's clock is read after each step."""
    keep: int = Field(default=2, ge=1)
    """Number of newest checkpoints to keep. While one is saved, the disk needs room for one more. Training waits until
    it is saved."""


class ResumeConfig(Section):
    """What may differ from the checkpoint that a run resumes from."""

    allow: tuple[Difference, ...] = ("world_size", "zero_stage")
    """What may differ from the checkpoint. `world_size`: another number of processes; the batches are the same, losses
    agree within rounding. `zero_stage`: 1 instead of 2, or 2 instead of 1. `data`: a changed domain starts its data
    from the beginning. `tokenizer`: needs `data` too, and a vocabulary that fits. `mixture`: another policy, references
    or prior; the current weights stay. `[]` refuses every difference: the run resumes bit for bit or not at all."""
