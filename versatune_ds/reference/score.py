"""Use a given model's held-out losses as references: one pass over the held-out examples, no training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from versatune_ds.config import RunConfig
from versatune_ds.engine.ds_settings import deepspeed_config
from versatune_ds.reference.shared import Workplace
from versatune_ds.training.assemble import build_engine, build_model
from versatune_ds.training.held_out import measure_validation, validation_loader
from versatune_ds.training.prepared_data import RunSetup


def scored_recipe(config: RunConfig, model: str) -> RunConfig:
    """Return the recipe with a given model, a folder or Hub name, instead of its own."""
    settings = config.model.model_copy(update={"name_or_path": model, "from_config": None})
    return config.model_copy(update={"model": settings})


def score_model(place: Workplace, *, names: Sequence[str], model: str) -> list[dict[str, Any]]:
    """Return the held-out losses of a given model, and its losses on as many training examples."""
    config = scored_recipe(place.config, model)
    ds_config = deepspeed_config(config.train, world_size=place.world.world_size)
    setup = RunSetup(
        config=config,
        world=place.world,
        device=place.device,
        ds_config=ds_config,
        tokenizer=place.tokenizer,
        data=place.data,
    )
    engine = build_engine(setup, build_model(setup))
    held_out, trained = (
        measure_validation(
            engine,
            validation_loader(setup, split=split),
            num_domains=len(place.data.domain_set),
        )
        for split in ("valid", "train")
    )
    columns = (held_out.mean(), held_out.standard_error(), held_out.num_loss_tokens(), trained.mean())
    return [
        {
            "domain": name,
            "loss": float(loss),
            "stderr": float(stderr),
            "num_loss_tokens": int(num_tokens),
            "train_loss": float(train_loss),
        }
        for name, loss, stderr, num_tokens, train_loss in zip(place.data.domain_set, *columns, strict=True)
        if name in names
    ]
