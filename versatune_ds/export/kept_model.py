"""Keep the weights of a model that is still in memory, without a checkpoint: one copy, complete or absent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from versatune_ds.config import RunConfig
from versatune_ds.export.folder import export_folder
from versatune_ds.export.run_export import WRAPPER_PREFIX, model_without_weights, weights_of_model, write_adapters
from versatune_ds.model.build import DTYPES, build_causal_lm, save_model_settings
from versatune_ds.model.weight_files import write_weights
from versatune_ds.run_folder.atomic import sync_file
from versatune_ds.run_folder.names import MODEL_FOLDER
from versatune_ds.run_folder.recorded_config import recorded_config


def keep_model(run_dir: Path, live_weights: Mapping[str, torch.Tensor]) -> Path:
    """Write the weights of a model that is still in memory into the run's `model` folder, and return the folder.

    Afterwards transformers loads the folder; of a run with adapters, peft loads the adapters alone. The weights are in
    the precision of training. A tokenizer and a model card are left out: the run's folder has what they are made of.

    Args:
        run_dir: The run's folder.
        live_weights: As `Engine.full_weights` returns them; of a run with adapters the trained ones suffice.

    Raises:
        RuntimeError: If they are not those of the run's model.
    """
    config = recorded_config(run_dir)
    dtype = DTYPES[config.train.precision]
    causal_lm = model_without_weights(run_dir, config, dtype=dtype)
    with export_folder(run_dir / MODEL_FOLDER, run_name=config.run.name) as folder:
        if config.model.lora is None:
            weights = weights_of_model(live_weights, causal_lm, origin=run_dir)
            write_weights(weights, folder=folder, dtype=dtype)
            save_model_settings(causal_lm, folder)
        else:
            adapters = {name.removeprefix(WRAPPER_PREFIX): weight for name, weight in live_weights.items()}
            write_adapters(causal_lm, adapters, folder=folder, dtype=dtype, base_model=config.model.name_or_path)
        for path in folder.glob("*.safetensors"):
            sync_file(path)
    return run_dir / MODEL_FOLDER


def model_bytes(config: RunConfig, *, vocab_size: int, special_ids: dict[str, int]) -> int:
    """Return the size of the weights that `keep_model` writes for a recipe, without reading any.

    Args:
        config: The recipe.
        vocab_size: Length of the tokenizer.
        special_ids: bos, eos and pad ids for a model made from config.
    """
    with torch.device("meta"):
        causal_lm = build_causal_lm(
            config.model,
            precision=config.train.precision,
            vocab_size=vocab_size,
            special_ids=special_ids,
            reads_weights=False,
        )
    is_adapter = config.model.lora is not None
    kept = [parameter for parameter in causal_lm.parameters() if parameter.requires_grad or not is_adapter]
    return sum(parameter.numel() for parameter in kept) * DTYPES[config.train.precision].itemsize
