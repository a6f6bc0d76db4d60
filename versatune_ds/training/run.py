"""Hold the parts of a run, and the little state that belongs to none of them.

The one idea: `Run` is what the loop works on. It is assembled in `assemble.py`; here is what it means to save it,
restore it and record what it decided.

Shape legend: **K** domains.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import numpy as np

from versatune_ds.config import RunConfig
from versatune_ds.data.loader import MixtureLoader
from versatune_ds.data.validation_rows import ValidationLoader
from versatune_ds.distributed import World
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.controller import Controller
from versatune_ds.mixture.schedule import Schedule
from versatune_ds.training.engine import Engine
from versatune_ds.training.meter import Meter
from versatune_ds.training.monitor import Monitor
from versatune_ds.training.signals import StopSignals

logger = logging.getLogger(__name__)

STATE_VERSION = 1


@dataclass(kw_only=True, slots=True)
class Run:
    """Everything the training loop needs, and the number of steps done."""

    config: RunConfig
    world: World
    domain_set: DomainSet
    engine: Engine
    loader: MixtureLoader
    validation: ValidationLoader
    schedule: Schedule
    controller: Controller | None
    """On rank 0 only."""
    monitor: Monitor
    signals: StopSignals
    meter: Meter
    identity: dict[str, str]
    """Digests of data and tokenizer: a checkpoint fits only the run that made it."""
    step: int = 0
    """Optimizer steps done."""
    requested_units_K: np.ndarray = field(default_factory=lambda: np.zeros(0))
    realised_units_K: np.ndarray = field(default_factory=lambda: np.zeros(0))
    num_tokens_K: np.ndarray = field(default_factory=lambda: np.zeros(0))
