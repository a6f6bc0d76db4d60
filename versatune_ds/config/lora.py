"""Define the `model.lora` section of a recipe: adapters are trained, everything else is frozen."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from versatune_ds.config.section import Section


class LoraConfig(Section):
    """Train adapters (LoRA, or DoRA) instead of the model's own weights. Needs the extra `lora`."""

    rank: int = Field(default=16, ge=1)
    """Rank of the adapters: a layer from D to E dimensions gets rank * (D + E) trained numbers. Raise it where the
    adapters cannot learn enough."""
    alpha: float = Field(default=32.0, gt=0)
    """Scale of the adapters: their output is multiplied by alpha / rank (by alpha / sqrt(rank) with `use_rslora`)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of an adapter's inputs set to zero while training."""
    target_modules: tuple[str, ...] | None = None
    """Layers that get an adapter, by the end of their names (q_proj, v_proj). By default every linear layer except
    the head, which cannot have one: the fused loss uses its weight directly."""
    use_dora: bool = False
    """Train the weights' magnitudes apart from their directions (DoRA)."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank), so that large ranks do not learn too slowly (rank-stabilised LoRA)."""

    @field_validator("target_modules", mode="before")
    @classmethod
    def _all_linear_is_the_default(cls, value: Any) -> Any:
        """Accept peft's `all-linear`, and one name without a list around it."""
        if isinstance(value, str):
            return None if value == "all-linear" else (value,)
        return value

    @field_validator("target_modules")
    @classmethod
    def _names_something(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """Check that there is at least one name and that none is empty."""
        if value is not None and not all(value or ("",)):
            raise ValueError("model.lora.target_modules: expected names such as [q_proj, v_proj], or leave it out")
        return value
