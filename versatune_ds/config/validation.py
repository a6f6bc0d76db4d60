"""Define the validation section of a recipe: how held-out losses are measured, and how much time that may take."""

from __future__ import annotations

from pydantic import Field, model_validator

from versatune_ds.config.section import Section


class ValidationConfig(Section):
    """Held-out losses: which examples are measured, and how much time that may take."""

    max_examples_per_domain: int | None = Field(default=200, ge=2)
    """Held-out examples of each domain that are measured while training, always the same ones; null measures all. More
    give smaller errors and take more time."""
    min_examples_per_domain: int = Field(default=20, ge=2)
    """Fewest examples of a domain that `target_standard_error` may choose."""
    target_standard_error: float | None = Field(default=None, gt=0)
    """Measure only as many examples of each domain as this standard error of its mean loss needs, in nats per loss
    token. Step 0 measures `max_examples_per_domain` and chooses; the choice stays to the end of the run. null keeps
    all. The change of a loss is known far better than the loss itself, because it is measured on the same examples.
    Losses of random weights hardly vary at step 0: for such a model give a smaller error, or raise
    `min_examples_per_domain`."""
    max_share: float | None = Field(default=None, gt=0, lt=1)
    """Largest share of the run's time that measuring may take, such as 0.02. If it takes more, losses are measured, and
    the mixture is updated, every 2, 3, ... times `mixture.update_every` steps. null measures every time: a clock
    decides here, so the same recipe may make other decisions on another machine."""
    rows_per_micro_batch: int | None = Field(default=None, ge=1)
    """Packed rows that one process evaluates at a time; by default as in training."""

    @model_validator(mode="after")
    def _has_room_to_choose(self) -> ValidationConfig:
        """Check that the smallest number of examples is not above the largest."""
        most = self.max_examples_per_domain
        if self.target_standard_error is not None and most is not None and self.min_examples_per_domain > most:
            raise ValueError(
                f"validation.min_examples_per_domain: {self.min_examples_per_domain} is more than "
                f"validation.max_examples_per_domain, {most}; lower it or raise the other"
            )
        return self
