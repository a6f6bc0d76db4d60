"""Define when state is saved and how much of it is kept, and what may differ when a run goes on from it.

The one idea: what changes the run is asked for by name; what only changes where it runs is not.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from versatune_ds.config.section import Section

Difference = Literal["data", "tokenizer", "mixture", "world_size", "zero_stage"]
"""What may differ between the parts of a run."""


class CheckpointConfig(Section):
    """Set when state is saved."""

    every: int | None = Field(default=None, ge=1)
    """Optimizer steps between checkpoints; by default only at the end and at a signal."""
    every_minutes: float | None = Field(default=None, gt=0)
    """Minutes between checkpoints by rank 0's clock, besides `every`; looked at after each step."""
    keep: int = Field(default=2, ge=1)
    """Newest checkpoints kept; while one is saved the disk holds one more. Saving is not asynchronous: training
    waits for it."""


class ResumeConfig(Section):
    """Set what may differ from the checkpoint a run goes on from."""

    allow: tuple[Difference, ...] = ("world_size", "zero_stage")
    """What may differ. `world_size`: another number of processes; same batches, losses within rounding. `zero_stage`:
    stages 1 and 2 for each other. `data`: a changed domain begins its data anew. `tokenizer`: needs `data` too, and a
    vocabulary that fits. `mixture`: another policy, references or prior (the weights reached stay). `[]`: bit for bit
    or not at all."""
