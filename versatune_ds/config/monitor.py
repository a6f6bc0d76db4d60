"""Define the monitor section of a recipe: what is written while a run goes on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from versatune_ds.config.section import Section


class WandbConfig(Section):
    """Set up Weights & Biases. Its key comes from the environment alone."""

    mode: Literal["online", "offline", "off"] = "off"
    project: str = "versatune"
    entity: str | None = None
    group: str | None = None
    """Runs compared with each other share a group."""


class MonitorConfig(Section):
    """Set what is written while the run goes on."""

    log_every: int = Field(default=10, ge=1)
    """Optimizer steps between lines on the terminal and in metrics.jsonl."""
    wandb: WandbConfig = WandbConfig()
