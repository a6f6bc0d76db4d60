"""Define the mixture section of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from versatune_ds.config.section import Section


class StartFraction(Section):
    """Stand-in references: a fraction of the first measured loss."""

    start_fraction: float = Field(gt=0, lt=1)
    """Reference loss = this fraction of the loss at the first measurement."""


class MixtureConfig(Section):
    """Say how the mixture starts and by which rule it moves."""

    policy: Literal["versatune", "uniform", "constant", "inverse", "proportional"] = "versatune"
    """Update rule of the weights."""
    prior: Literal["uniform", "proportional"] | dict[str, float] | Path = "proportional"
    """Weights at step 0: a prior.json, a mapping, uniform, or proportional to the data."""
    reference: StartFraction | dict[str, float] | Path | None = None
    """Reference losses: a reference.json, a mapping (nats per loss token), or {start_fraction: 0.85}."""
    sigma: float = Field(default=0.5, ge=0)
    """Step size of an update: a domain's weight grows by 1 + sigma * potential before renormalising."""
    update_every: int = Field(default=50, ge=1)
    """Optimizer steps between updates."""
    weight_unit: Literal["tokens", "loss_tokens", "examples"] = "tokens"
    """What a weight is a share of."""
