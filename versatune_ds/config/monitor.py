"""Define the monitor section of a recipe: what is written and shown while a run goes on."""

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
    tags: tuple[str, ...] = ()
    artifacts: Literal["none", "files", "model"] = "none"
    """What to keep there at the end: the recipe, prior and reference (files), and the exported model too (model)."""
    start_timeout_seconds: float = Field(default=30.0, gt=0)
    """How long to wait for the server at start before recording offline instead."""


class MonitorConfig(Section):
    """Set what is written and shown while the run goes on."""

    log_every: int = Field(default=10, ge=1)
    """Optimizer steps between lines on the terminal and in metrics.jsonl."""
    terminal: Literal["auto", "plain"] = "auto"
    """auto: a live view where stderr is a terminal, plain lines elsewhere; plain: lines everywhere."""
    tensorboard: bool = False
    """Write TensorBoard event files into the run's folder (extra `tensorboard`)."""
    wandb: WandbConfig = WandbConfig()
