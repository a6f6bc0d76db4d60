"""Define the monitor section of a recipe: what is logged while a run trains, and where."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from versatune_ds.config.error_messages import shown_value
from versatune_ds.config.section import Section, TextList
from versatune_ds.config.trackers import SwanlabConfig, TrackioConfig


class WandbConfig(Section):
    """Weights & Biases. Its API key is read from the environment only."""

    mode: Literal["online", "offline", "off"] = "off"
    """`online` sends the run to the server while it trains; `offline` records it in the run's folder, for `wandb sync`;
    `off` does neither."""
    project: str = "versatune"
    """W&B project; it is created if it does not exist."""
    entity: str | None = None
    """User or team that owns the project; by default your own default entity."""
    group: str | None = None
    """Group of runs that are compared with each other."""
    tags: TextList = ()
    """Labels to find the run by."""
    artifacts: Literal["none", "files", "model"] = "none"
    """What to upload at the end: `files` (recipe, prior and reference), or `model` (these and the exported model)."""
    start_timeout_seconds: float = Field(default=30.0, gt=0)
    """Seconds to wait for the server at the start before recording offline instead."""

    @model_validator(mode="after")
    def _has_names_that_wandb_takes(self) -> WandbConfig:
        """Check names as W&B does, unless it is off: W&B itself looks only after data and model are loaded."""
        problems = [] if self.mode == "off" else list(_problems(self))
        if problems:
            raise ValueError("\n".join(problems))
        return self


_NOT_IN_NAMES = "/\\#?%:"
_MOST_IN_NAME, _MOST_IN_TAG = 128, 64
"""Lengths that W&B accepts, in characters (wandb 0.2x, Settings.validate_project and validate_run_tags)."""


def _problems(settings: WandbConfig) -> Iterator[str]:
    """Yield what W&B would refuse about its names, a line each."""
    for key, name in (("project", settings.project), ("entity", settings.entity)):
        if name is None:
            continue
        found = [character for character in _NOT_IN_NAMES if character in name]
        if not name.strip():
            yield f"monitor.wandb.{key}: empty; give a name, or leave the key out"
        elif found:
            is_with_entity = key == "project" and "/" in found
            rest = "; give the entity in monitor.wandb.entity" if is_with_entity else ""
            yield f"monitor.wandb.{key}: {shown_value(name)} has {' '.join(found)}, which W&B allows in no name{rest}"
        elif len(name) > _MOST_IN_NAME:
            yield f"monitor.wandb.{key}: {len(name)} characters; W&B allows at most {_MOST_IN_NAME}"
    if settings.group is not None and len(settings.group) > _MOST_IN_NAME:
        yield f"monitor.wandb.group: {len(settings.group)} characters; W&B allows at most {_MOST_IN_NAME}"
    for tag in settings.tags:
        if not 1 <= len(tag) <= _MOST_IN_TAG:
            shown = f"{tag!r} is empty" if not tag else f"{tag[:20]!r}... has {len(tag)} characters"
            yield f"monitor.wandb.tags: {shown}; W&B allows 1 to {_MOST_IN_TAG}"


class MonitorConfig(Section):
    """What is logged while the run trains, and where."""

    log_every: int = Field(default=10, ge=1)
    """Optimizer steps between two lines on the terminal and in metrics.jsonl."""
    terminal: Literal["auto", "plain"] = "auto"
    """`auto` shows a live view where stderr is a terminal and plain lines elsewhere; `plain` always prints lines."""
    tensorboard: bool = False
    """Write TensorBoard event files into the run's folder; needs the extra `tensorboard`."""
    wandb: WandbConfig = WandbConfig()
    trackio: TrackioConfig = TrackioConfig()
    swanlab: SwanlabConfig = SwanlabConfig()
