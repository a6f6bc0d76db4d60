"""Find the files of the model that every run of a comparison starts from: trained by the comparison, or given."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from versatune_ds.comparison.plan import ComparisonPlan
from versatune_ds.config import ModelConfig
from versatune_ds.knowledge.base_model import OTHER_FORMATS, hub_folder
from versatune_ds.model.build import check_model_weights
from versatune_ds.model.named_model import check_saved_model

_FILES_OF_MODELS = ("*.safetensors", "*.bin", "*.json", "tokenizer.model")
"""Patterns of the files that identify the model in a folder."""


def base_model_folder(plan: ComparisonPlan) -> Path:
    """Return the folder of the base model: the one it is exported to, or that of a given model.

    A model of the Hub is fetched at the first call, and every run loads that revision of it.

    Raises:
        ValueError: If the given model is not found.
    """
    return plan.start_folder / "base_model" if plan.base.model is None else _given_model(plan.base.model)


@cache
def _given_model(name: str) -> Path:
    """Return the folder of a pretrained model."""
    model = ModelConfig(name_or_path=name)
    try:
        check_saved_model(model)
        check_model_weights(model)
        return Path(name) if Path(name).is_dir() else hub_folder(name, key="model.name_or_path", ignored=OTHER_FORMATS)
    except ValueError as error:
        raise ValueError(str(error).replace("model.name_or_path", "base.model", 1)) from None


def files_of_base_model(plan: ComparisonPlan) -> list[Path]:
    """Return the files that identify the base model: its weights; of a given one, its settings and tokenizer too.

    Those of one that is trained here follow from its recipe.
    """
    patterns = ("*.safetensors",) if plan.base.model is None else _FILES_OF_MODELS
    folder = base_model_folder(plan)
    return sorted({path for pattern in patterns for path in folder.glob(pattern)})
