"""Define the train section of a recipe.

The one idea: lengths are optimizer steps, batch sizes are packed rows; DeepSpeed's own batch keys are derived.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from versatune_ds.config.section import Section


class TrainConfig(Section):
    """Set the optimisation: lengths in optimizer steps, batch sizes in packed rows."""

    steps: int = Field(ge=1)
    """Optimizer steps of the whole run."""
    rows_per_batch: int = Field(default=8, ge=1)
    """Packed rows of one optimizer step, over all processes."""
    rows_per_micro_batch: int = Field(default=1, ge=1)
    """Packed rows one process takes through the model at a time."""
    learning_rate: float = Field(default=2e-5, gt=0)
    """Peak learning rate."""
    learning_rate_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls after the warm-up."""
    min_learning_rate_fraction: float = Field(default=0.1, ge=0, le=1)
    """Where it ends, as a fraction of the peak."""
    warmup_fraction: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps over which the rate rises linearly from 0."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay; biases and norms are left out."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradient norm above which gradients are scaled down; 0 turns clipping off."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Number format of weights and activations; the optimizer keeps fp32."""
    deepspeed: Path | dict[str, Any] = Field(default={"zero_optimization": {"stage": 2}})
    """DeepSpeed settings: a JSON file or a mapping. Batch, precision and optimizer come from this section."""
