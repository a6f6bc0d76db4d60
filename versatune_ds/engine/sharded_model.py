"""Divide a model's weights over the ranks for forward passes alone (ZeRO-3 without an optimizer).

For a model that no single GPU holds: `versatune evaluate --sharded` and `versatune detect --sharded`. A saved model is
loaded in parts (`build_causal_lm(zero3_config=...)`), so no rank ever stores all of it. A forward pass gathers the
weights of one module at a time from all ranks, so every rank must make the same number of passes, whatever rows it has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import deepspeed
import torch
from torch import nn

from versatune_ds.config import ModelConfig, TrainConfig
from versatune_ds.engine.ds_settings import read_deepspeed_json, zero_stage
from versatune_ds.engine.engine import share_process_group
from versatune_ds.engine.expert_leaves import mark_expert_layers
from versatune_ds.model.build import build_causal_lm
from versatune_ds.model.router_loss import omit_router_logits


def sharded_config(train: TrainConfig) -> dict[str, Any]:
    """Return DeepSpeed's config for forward passes under ZeRO-3; call it once the process group exists.

    The recipe's own ZeRO-3 settings apply where it has some (where parameters are offloaded to, sizes of buffers).
    """
    share_process_group()
    settings = read_deepspeed_json(train.deepspeed)
    zero = dict(settings.get("zero_optimization", {})) if zero_stage(settings) == 3 else {}
    zero.pop("offload_optimizer", None)  # there is no optimizer
    return {
        "train_micro_batch_size_per_gpu": 1,  # DeepSpeed requires one; nothing is trained
        "zero_optimization": {**zero, "stage": 3},
        "bf16": {"enabled": train.precision == "bf16"},
        "fp16": {"enabled": train.precision == "fp16"},
        "steps_per_print": 2**31,
    }


def shard_model(model: nn.Module, *, ds_config: dict[str, Any]) -> Any:
    """Install the hooks that gather weights, in place; the model is used as before. Returns DeepSpeed's engine.

    Communication: every later forward pass of the model, or of a part of it, gathers weights from all ranks.
    """
    model.requires_grad_(False)
    mark_expert_layers(model)
    engine, *_ = deepspeed.initialize(model=model, config=ds_config, dist_init_required=False)
    engine.eval()
    return engine


def load_model(
    model: ModelConfig,
    *,
    train: TrainConfig,
    vocab_size: int,
    device: torch.device,
    is_sharded: bool,
    wrap: Callable[[Any], nn.Module],
) -> Any:
    """Return a saved model in evaluation mode: complete on a device, or divided over the ranks.

    Args:
        model: The model.
        train: Its precision, and the recipe's ZeRO-3 settings.
        vocab_size: Length of the tokenizer.
        device: Of this process.
        is_sharded: Whether its weights are divided over the ranks, which all call this.
        wrap: Changes the model before its hooks are installed, or puts it into another module; returns what is used.
    """
    ds_config = sharded_config(train) if is_sharded else None
    causal_lm = build_causal_lm(
        model, precision=train.precision, vocab_size=vocab_size, special_ids={}, zero3_config=ds_config
    )
    omit_router_logits(causal_lm)
    if ds_config is None:
        return wrap(causal_lm.to(device)).eval()
    wrapped = wrap(causal_lm).eval()
    shard_model(wrapped, ds_config=ds_config)
    return wrapped
