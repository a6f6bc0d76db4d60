"""Find the model to evaluate, and the one it started from.

A run or a folder becomes a folder that transformers can load. A run's checkpoint is exported first, so the measured
model is the one that users of the export get.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from versatune_ds.config import ModelConfig, RunConfig
from versatune_ds.data.encoding.tokenizer import load_tokenizer
from versatune_ds.export.run_export import export_run
from versatune_ds.model.attention_choice import machine_of
from versatune_ds.model.build import build_causal_lm, special_ids_of_tokenizer
from versatune_ds.model.named_model import check_is_no_adapter
from versatune_ds.run_folder.folder import weights_made_on
from versatune_ds.run_folder.names import CONFIG_FILE, TOKENIZER_FOLDER
from versatune_ds.run_folder.recorded_config import check_model_folder, is_run
from versatune_ds.training.saved_model import load_recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model on disk or on the Hub, and its tokenizer."""

    name: str
    """Its name in the result."""
    folder: str
    tokenizer: str


def config_of(model: Path, *, recipe: Path | None, overrides: Sequence[str]) -> RunConfig:
    """Return the recipe with the data to evaluate on: a run's own unless another is given.

    Raises:
        ValueError: If there is no such folder, or it is not a run's and no recipe is given.
    """
    check_model_folder(model, has_recipe=recipe is not None)
    return load_recipe(recipe or model / CONFIG_FILE, overrides)


def trained_subject(model: Path, *, workspace: Path, step: int | None) -> Subject:
    """Return the model to evaluate; a run's checkpoint is exported to the workspace first."""
    if not is_run(model):
        check_is_no_adapter(str(model), key="MODEL")
        return Subject(name=str(model), folder=str(model), tokenizer=str(model))
    folder = export_run(model, output=workspace / "trained", step=step)
    return Subject(name=str(model), folder=str(folder), tokenizer=str(folder))


def base_subject(model: Path, config: RunConfig, *, against: Path | None, workspace: Path) -> Subject | None:
    """Return the model to compare with: the one given, else the one a run started from, else none.

    Random initial weights are made again: they depend on the run's seed and on the kind of device that made them.

    Raises:
        ValueError: If they were made on a GPU and there is none here.
    """
    if against is not None:
        return trained_subject(against, workspace=workspace / "against", step=None)
    if not is_run(model):
        return None
    tokenizer, name = str(model / TOKENIZER_FOLDER), config.model.name_or_path
    if name is not None:
        return Subject(name=name, folder=name, tokenizer=tokenizer)
    device = torch.device(weights_made_on(model) or "cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"{model}: its random initial weights were made on a GPU, and a CPU makes others; evaluate on a GPU, "
            "or use --against FOLDER or --no-base"
        )
    loaded = load_tokenizer(tokenizer)
    torch.manual_seed(config.run.seed)
    causal_lm = build_causal_lm(
        config.model.model_copy(update={"lora": None, "freeze": (), "attention": "auto"}),
        precision=config.train.precision,
        vocab_size=len(loaded),
        special_ids=special_ids_of_tokenizer(loaded),
        device=device,
        machine=machine_of("cpu", precision=config.train.precision),  # it is saved, not run: no GPU is opened for it
    )
    causal_lm.save_pretrained(workspace / "base")
    return Subject(name="its random initial weights", folder=str(workspace / "base"), tokenizer=tokenizer)


def load_subject(subject: Subject, config: RunConfig, *, zero3_config: dict[str, Any] | None = None) -> tuple[Any, Any]:
    """Return (causal_lm, tokenizer) of a model, in the recipe's precision, on the CPU.

    With DeepSpeed's config under ZeRO-3 it is loaded in parts, each on its rank's device, and never complete anywhere.
    """
    tokenizer = load_tokenizer(subject.tokenizer, trust_remote_code=config.model.trust_remote_code)
    settings = ModelConfig(
        name_or_path=subject.folder,
        attention=config.model.attention,
        trust_remote_code=config.model.trust_remote_code,
    )
    precision = config.train.precision
    causal_lm = build_causal_lm(
        settings, precision=precision, vocab_size=len(tokenizer), special_ids={}, zero3_config=zero3_config
    )
    return causal_lm.eval(), tokenizer
