"""What every part of a run is built from: config, process, device, tokenizer and data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from versatune_ds.config import RunConfig
from versatune_ds.data.prepare.domains import PreparedData
from versatune_ds.distributed import World
from versatune_ds.domains import DomainSet
from versatune_ds.engine.ds_settings import zero_stage


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSetup:
    """What is known before any part of a run is built; `assemble.py` passes it to each builder."""

    config: RunConfig
    world: World
    device: torch.device
    """Where the model runs."""
    ds_config: dict[str, Any]
    """What `deepspeed_config` returned."""
    tokenizer: Any
    data: PreparedData

    @property
    def domain_set(self) -> DomainSet:
        """Return the run's domains."""
        return self.data.domain_set

    @property
    def zero_stage(self) -> int:
        """Return DeepSpeed's ZeRO stage, 0 to 3."""
        return zero_stage(self.ds_config)

    @property
    def longest_example(self) -> int:
        """Return the tokens of the longest example, trained on or held out."""
        parts = (*self.data.train, *self.data.valid)
        return max((int(part.lengths.max()) for part in parts if len(part.lengths)), default=0)
