"""What the start checks are given: the recipe, where they run, and what is known of the processes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from versatune_ds.config import RunConfig
from versatune_ds.engine.ds_settings import deepspeed_config, rows_at_once
from versatune_ds.training.finding import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class StartCheckInput:
    """Inputs of the start checks."""

    config: RunConfig
    stage: Stage
    """Where the checks run."""
    num_processes: int = 1
    device_type: str | None = None
    """cpu or cuda, where the model will run; None where this machine cannot know."""
    is_here: bool = False
    """Whether the processes run on this machine."""
    is_fresh: bool = False
    """Whether the run starts over."""
    gpus_asked_by: str | None = None
    """The option that asks for GPUs; None leaves it to the recipe's `slurm` section and the environment."""
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)

    @property
    def ds_config(self) -> dict[str, Any]:
        """Return DeepSpeed's config.

        A batch that the processes cannot share equally has its own check. Here it, or their number, is replaced by one
        that fits, so that mistakes in the batch and in the settings are reported together.
        """
        train = self.config.train
        num_groups = max(self.num_processes // train.sequence_parallel, 1)
        world_size = num_groups * train.sequence_parallel
        num_at_once = rows_at_once(train, world_size=world_size)
        if train.rows_per_batch % num_at_once:
            train = train.model_copy(update={"rows_per_batch": num_at_once})
        return deepspeed_config(train, world_size=world_size)


def is_made_by_another_job(start: StartCheckInput) -> bool:
    """Return whether model and data may be missing because the job before this one makes them."""
    return start.config.slurm.dependency is not None and start.stage != "reference"
