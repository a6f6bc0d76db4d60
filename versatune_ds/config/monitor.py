"""Define the monitor section of a recipe: what is written and shown while a run goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from versatune_ds.config.section import Section
from versatune_ds.config.wording import shown_value


class WandbConfig(Section):
    """Set up Weights & Biases. Its key comes from the environment alone."""

    mode: Literal["online", "offline", "off"] = "off"
    """Send the run to the server while it trains, record it in the run's folder for `wandb sync`, or neither."""
    project: str = "versatune"
    """Project at W&B; made there if it does not exist."""
    entity: str | None = None
    """User or team that owns the project; your default one without it."""
    group: str | None = None
    """Runs compared with each other share a group."""
    tags: tuple[str, ...] = ()
    """Labels to find the run by."""
    artifacts: Literal["none", "files", "model"] = "none"
    """What to keep there at the end: the recipe, prior and reference (files), and the exported model too (model)."""
    start_timeout_seconds: float = Field(default=30.0, gt=0)
    """How long to wait for the server at start before recording offline instead."""

    @field_validator("tags", mode="before")
    @classmethod
    def _as_list(cls, tags: Any) -> Any:
        """Let one tag stand without a list around it."""
        return (tags,) if isinstance(tags, str) else tags

    @model_validator(mode="after")
    def _has_names_that_wandb_takes(self) -> WandbConfig:
        """Check names as W&B does, which finds a mistake only after data and model are loaded; not where it is off."""
        problems = [] if self.mode == "off" else list(_problems(self))
        if problems:
            raise ValueError("\n".join(problems))
        return self


_NOT_IN_NAMES = "/\\#?%:"
_MOST_IN_NAME, _MOST_IN_TAG = 128, 64
"""Characters W&B takes (wandb 0.2x, Settings.validate_project and validate_run_tags)."""


def _problems(settings: WandbConfig) -> Iterator[str]:
    """Yield what W&B would refuse about its names, a line each."""
    for key in ("project", "entity"):
        name = getattr(settings, key)
        found = [character for character in _NOT_IN_NAMES if name is not None and character in name]
        if name is not None and not name.strip():
            yield f"monitor.wandb.{key}: empty; give a name, or leave the key out"
        elif found:
            rest = (
                "; the entity has a key of its own, monitor.wandb.entity" if key == "project" and "/" in found else ""
            )
            yield f"monitor.wandb.{key}: {shown_value(name)} has {' '.join(found)}, which W&B takes in no name{rest}"
        elif name is not None and len(name) > _MOST_IN_NAME:
            yield f"monitor.wandb.{key}: {len(name)} characters; W&B takes at most {_MOST_IN_NAME}"
    if settings.group is not None and len(settings.group) > _MOST_IN_NAME:
        yield f"monitor.wandb.group: {len(settings.group)} characters; W&B takes at most {_MOST_IN_NAME}"
    for tag in settings.tags:
        if not 1 <= len(tag) <= _MOST_IN_TAG:
            shown = f"{tag!r} is empty" if not tag else f"{tag[:20]!r}... has {len(tag)} characters"
            yield f"monitor.wandb.tags: {shown}; W&B takes 1 to {_MOST_IN_TAG}"


class MonitorConfig(Section):
    """Set what is written and shown while the run goes on."""

    log_every: int = Field(default=10, ge=1)
    """Optimizer steps between lines on the terminal and in metrics.jsonl."""
    terminal: Literal["auto", "plain"] = "auto"
    """auto: a live view where stderr is a terminal, plain lines elsewhere; plain: lines everywhere."""
    tensorboard: bool = False
    """Write TensorBoard event files into the run's folder (extra `tensorboard`)."""
    wandb: WandbConfig = WandbConfig()
