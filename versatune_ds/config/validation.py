"""Define the validation section of a recipe: how the losses that steer are measured, and what that may cost."""

from __future__ import annotations

from pydantic import Field, model_validator

from versatune_ds.config.section import Section


class ValidationConfig(Section):
    """Set how the losses that steer are measured."""

    max_examples_per_domain: int | None = Field(default=200, ge=2)
    """Held-out examples a domain used while training; always the same ones. None uses all."""
    min_examples_per_domain: int = Field(default=20, ge=2)
    """Fewest that `target_standard_error` may choose, where a domain has them."""
    target_standard_error: float | None = Field(default=None, gt=0)
    """Nats per loss token. The measurement at step 0 is of `max_examples_per_domain`; of these each domain keeps as
    many as this error of its mean loss needs, the same ones to the end of the run. None keeps all. A change of the loss
    is known far better than the loss itself, since it is measured on the same examples. Losses of random weights hardly
    scatter at step 0: give such a model a smaller error, or more `min_examples_per_domain`."""
    max_share: float | None = Field(default=None, gt=0, lt=1)
    """Share of the run's time that measuring may take, such as 0.02. Where it takes more, losses are measured, and the
    mixture is updated, every 2, 3, ... times `mixture.update_every` steps. None measures every time. It is None by
    default because a clock decides: the same recipe may then take other decisions on another machine."""
    rows_per_micro_batch: int | None = Field(default=None, ge=1)
    """Packed rows one process evaluates at a time; as in training by default."""

    @model_validator(mode="after")
    def _has_room_to_choose(self) -> ValidationConfig:
        """Check that the fewest examples are no more than the most."""
        most = self.max_examples_per_domain
        if self.target_standard_error is not None and most is not None and self.min_examples_per_domain > most:
            raise ValueError(
                f"validation.min_examples_per_domain: {self.min_examples_per_domain} is more than "
                f"validation.max_examples_per_domain, {most}; lower it or raise the other"
            )
        return self
