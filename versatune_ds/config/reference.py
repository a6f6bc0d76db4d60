"""Define the reference section of a recipe: how the base model is fine-tuned on each domain alone.

A reference loss says how far a domain gets by itself. All other settings are the recipe's; this section only says how
long to train.
"""

from __future__ import annotations

from pydantic import Field

from versatune_ds.config.model import ModelConfig
from versatune_ds.config.section import Section


class ReferenceConfig(Section):
    """How `versatune reference` measures what each domain can reach."""

    steps: int | None = Field(default=None, ge=1)
    """Largest number of optimizer steps on each domain; by default half of `train.steps`. Training stops earlier if the
    loss no longer falls."""
    evaluate_every: int | None = Field(default=None, ge=1)
    """Optimizer steps between measurements of the held-out loss; by default a tenth of the steps. The number of steps
    is rounded up to a multiple."""
    patience: int = Field(default=2, ge=1)
    """Measurements in a row without a new minimum after which training on a domain stops."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate; by default `train.learning_rate`."""
    model: ModelConfig | None = None
    """Another model than the recipe's, for example a smaller one; it must use the same tokenizer."""
