"""Define the reference section of a recipe: how each domain's model alone is fine-tuned for its reference loss.

The one idea: a reference answers "how far could this domain get by itself", so everything but the mixture is the
recipe's own, and what is set here only says how long to try.
"""

from __future__ import annotations

from pydantic import Field

from versatune_ds.config.model import ModelConfig
from versatune_ds.config.section import Section


class ReferenceConfig(Section):
    """Set how `versatune reference` measures what each domain could reach."""

    steps: int | None = Field(default=None, ge=1)
    """Most optimizer steps on each domain; by default half of `train.steps`. The loss may stop falling before."""
    evaluate_every: int | None = Field(default=None, ge=1)
    """Optimizer steps between held-out losses, a tenth of the steps by default; steps are rounded up to fit."""
    patience: int = Field(default=2, ge=1)
    """Measurements in a row without a new minimum after which a domain stops."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate; `train.learning_rate` by default."""
    model: ModelConfig | None = None
    """Another model than the recipe's, for example a smaller one; it must read the same tokenizer."""
