"""Measure reference losses on forked ranks, as `versatune reference` does in processes that it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ranks import run_ranks

from versatune_ds.config import RunConfig
from versatune_ds.engine.ds_settings import deepspeed_config
from versatune_ds.reference.command import ReferenceTask
from versatune_ds.reference.measure import measure_references
from versatune_ds.training.prepared_data import RunSetup, prepare_once_per_node
from versatune_ds.training.signals import StopSignals


def setup_of_recipe(config: RunConfig, world: Any) -> RunSetup:
    """Return what all domains of a recipe share on this rank."""
    tokenizer, data = prepare_once_per_node(config, world)
    ds_config = deepspeed_config(config.train, world_size=world.world_size)
    device = torch.device("cpu")
    return RunSetup(config=config, world=world, device=device, ds_config=ds_config, tokenizer=tokenizer, data=data)


def measure(config: RunConfig, task: ReferenceTask | None = None, *, world_size: int = 1, folder: Path) -> list[int]:
    """Return the exit codes of all ranks."""
    folder.mkdir(exist_ok=True)
    task, stop_signals = task or ReferenceTask(), StopSignals()
    stop_signals.ignore = lambda: None
    return run_ranks(
        lambda world: measure_references(setup_of_recipe(config, world), task=task, stop_signals=stop_signals),
        world_size=world_size,
        folder=folder,
    )
