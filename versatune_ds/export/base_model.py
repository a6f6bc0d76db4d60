"""Load the frozen weights that a checkpoint with adapters alone lacks, from the base model's own files.

They are loaded unquantised, in the precision of training. Adapters trained beside weights in 4 bits are merged into
these, so the exported model is not exactly the one that was trained: it is without the quantisation's errors, and its
losses differ from the recorded ones (`versatune evaluate` measures them).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from versatune_ds.config import RunConfig
from versatune_ds.model.attention_choice import machine_of
from versatune_ds.model.build import build_causal_lm
from versatune_ds.model.weight_files import Weight
from versatune_ds.run_folder.checkpoint_files import read_state
from versatune_ds.training.base_weights import BASE_WEIGHTS, base_weights_digest, changed_line
from versatune_ds.training.prepared_data import cache_folder
from versatune_ds.training.saved_model import with_saved_model

logger = logging.getLogger(__name__)


def frozen_weights(checkpoint: Path, causal_lm: Any, *, config: RunConfig, is_adapter: bool) -> Mapping[str, Weight]:
    """Return the weights that a checkpoint was saved without, by name; empty if it has all.

    Args:
        checkpoint: Its folder.
        causal_lm: The run's model with its adapters, on the meta device.
        config: The run's recipe.
        is_adapter: Whether the adapters alone are exported; the weights are then empty tensors that nobody reads.

    Raises:
        RuntimeError: If the base model's files are gone or have changed since.
    """
    recorded = read_state(checkpoint)["identity"].get(BASE_WEIGHTS)
    if recorded is None:
        return {}
    frozen = {name: part for name, part in causal_lm.named_parameters() if not part.requires_grad}
    if is_adapter:
        return frozen
    model = with_saved_model(config).model
    if base_weights_digest(model, cache_dir=cache_folder(config)) != recorded:
        raise RuntimeError(f"{changed_line(checkpoint, model)}, or write the adapters alone with --lora adapter")
    if model.load_in_4bit:
        logger.info(
            "adapters trained beside weights in 4 bits are merged into the unquantised ones: losses differ a little "
            "from those of training; versatune evaluate measures them"
        )
    changes = {"load_in_4bit": False, "attention": "auto", "gradient_checkpointing": False}
    precision = config.train.precision
    base = build_causal_lm(
        model.model_copy(update=changes),
        precision=precision,
        vocab_size=0,  # checked when training began
        special_ids={},
        machine=machine_of("cpu", precision=precision),
    )
    return {name: part.detach() for name, part in base.named_parameters() if name in frozen}
