"""Measure the held-out losses of a given model in the place of fine-tuned ones: `versatune reference --score`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from versatune_ds.config import RunConfig
from versatune_ds.data.encoding.tokenizer import load_tokenizer, tokenizer_digest
from versatune_ds.reference.file import Result
from versatune_ds.training.held_out import measure_validation, validation_loader
from versatune_ds.training.model_engine import build_engine, build_model
from versatune_ds.training.prepared_data import RunSetup


def check_same_tokenizer(name: str, *, key: str, tokenizer: Any) -> None:
    """Raise ValueError if a model has another tokenizer: its losses are then not comparable."""
    if tokenizer_digest(load_tokenizer(name)) != tokenizer_digest(tokenizer):
        raise ValueError(
            f"{key}: {name} has another tokenizer than the recipe, so its losses per token do not compare; "
            "choose a model of the same family, or set model.tokenizer to that model's and measure again"
        )


def scored_recipe(config: RunConfig, model: str) -> RunConfig:
    """Return the recipe with a given model, a folder or Hub name, instead of its own."""
    settings = config.model.model_copy(update={"name_or_path": model, "from_config": None})
    return config.model_copy(update={"model": settings})


def score_model(setup: RunSetup, *, names: Sequence[str], model: str) -> list[Result]:
    """Return the held-out losses of a given model, and its losses on as many training examples."""
    setup = replace(setup, config=scored_recipe(setup.config, model))
    engine = build_engine(setup, build_model(setup))
    held_out, trained = (
        measure_validation(engine, validation_loader(setup, split=split), num_domains=len(setup.domain_set))
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
        for name, loss, stderr, num_tokens, train_loss in zip(setup.domain_set, *columns, strict=True)
        if name in names
    ]
