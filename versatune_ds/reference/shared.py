"""What the references of all domains share: recipe, world, tokenizer and data, each loaded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from versatune_ds.config import RunConfig, load_config
from versatune_ds.data.encoding.tokenizer import load_tokenizer, tokenizer_digest
from versatune_ds.data.prepare.domains import PreparedData
from versatune_ds.distributed import World
from versatune_ds.reference.command import ReferenceTask, other_model
from versatune_ds.training.prepared_data import prepare_once_per_node
from versatune_ds.training.worker import take_place


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """What the measurements of all domains share."""

    config: RunConfig
    world: World
    device: torch.device
    tokenizer: Any
    data: PreparedData


def open_workplace(recipe: Path, overrides: Sequence[str], *, task: ReferenceTask, world: World) -> Workplace:
    """Join the world and prepare the data; raise ValueError if recipe, data or task is wrong."""
    config = load_config(recipe, overrides)
    other = other_model(config, task)
    device = take_place(world)
    tokenizer, data = prepare_once_per_node(config, world)
    for name in task.domains or ():
        if name not in data.domain_set.names:
            raise ValueError(f"--domains: {name!r} is none of the domains {', '.join(data.domain_set)}")
    if other is not None:
        key, name = other
        _check_same_tokenizer(name, key=key, tokenizer=tokenizer)
    return Workplace(config=config, world=world, device=device, tokenizer=tokenizer, data=data)


def _check_same_tokenizer(name: str, *, key: str, tokenizer: Any) -> None:
    """Raise ValueError if a model has another tokenizer: its losses are then not comparable."""
    if tokenizer_digest(load_tokenizer(name)) != tokenizer_digest(tokenizer):
        raise ValueError(
            f"{key}: {name} has another tokenizer than the recipe, so its losses per token do not compare; "
            "choose a model of the same family, or set model.tokenizer to that model's and measure again"
        )
