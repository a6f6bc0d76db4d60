"""Check features of DeepSpeed that work only together with other settings.

DeepSpeed 0.19.8 ignores some of them elsewhere, and ends others with an AssertionError once the model is built. What
never works here is in ds_unsupported.py; docs/deepspeed.md has the table of all features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from versatune_ds.config import TrainConfig
from versatune_ds.engine.ds_settings import offload_device, zero_stage


def check_features(train: TrainConfig, ds_config: Mapping[str, Any]) -> None:
    """Check that every feature which is on has what it needs.

    Args:
        train: The recipe's train section.
        ds_config: What `deepspeed_config` returned.

    Raises:
        ValueError: One line for each feature, with what it needs.
    """
    lines = [*_bf16_lines(train, ds_config), *_partition_lines(ds_config), *_ratio_lines(train, ds_config)]
    if lines:
        raise ValueError("\n".join(f"train.deepspeed: {line}" for line in lines))


def has_bf16_states(ds_config: Mapping[str, Any]) -> bool:
    """Return whether master weights, gradients and the optimizer's moments are all kept in bf16."""
    return _is_on(ds_config, "bf16_master_weights_and_grads") and _is_on(ds_config, "bf16_optimizer_states")


def _is_on(ds_config: Mapping[str, Any], name: str) -> bool:
    return (ds_config.get("bf16") or {}).get(name) is True


def _bf16_lines(train: TrainConfig, ds_config: Mapping[str, Any]) -> Iterator[str]:
    """Yield what master weights or moments in bf16 lack."""
    has_masters, has_states = (
        _is_on(ds_config, f"bf16_{name}") for name in ("master_weights_and_grads", "optimizer_states")
    )
    if not (has_masters or has_states):
        return
    is_offloaded = offload_device(ds_config, "offload_optimizer") is not None
    if train.precision != "bf16":
        yield f"bf16.bf16_*: they act only with train.precision=bf16, which is {train.precision}"
    elif not has_masters:
        yield "bf16.bf16_optimizer_states: needs bf16.bf16_master_weights_and_grads too"
    elif has_states and (is_offloaded or train.optimizer != "adamw"):
        yield (
            "bf16.bf16_optimizer_states: needs train.optimizer=adamw and no zero_optimization.offload_optimizer; with "
            "offloading leave it out, and keep bf16.bf16_master_weights_and_grads"
        )
    elif not has_states and not (is_offloaded and train.optimizer == "deepspeed_adam"):
        yield (
            "bf16.bf16_master_weights_and_grads: needs bf16.bf16_optimizer_states too, or "
            "zero_optimization.offload_optimizer with train.optimizer=deepspeed_adam"
        )


def _partition_lines(ds_config: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with secondary partitions (ZeRO++ hpZ), which DeepSpeed ignores where they do not fit."""
    size = (ds_config.get("zero_optimization") or {}).get("zero_hpz_partition_size", 1)
    if size in (0, 1, "auto"):
        return
    if zero_stage(ds_config) != 3:
        yield f"zero_optimization.zero_hpz_partition_size={size}: acts only under ZeRO stage 3; leave it out"
    rows_at_once = ds_config["train_micro_batch_size_per_gpu"] * ds_config["gradient_accumulation_steps"]
    world_size = ds_config["train_batch_size"] // rows_at_once
    if world_size % size:
        yield (
            f"zero_optimization.zero_hpz_partition_size={size}: expected a divisor of the {world_size} processes, such "
            "as the number of GPUs of a node"
        )


def _ratio_lines(train: TrainConfig, ds_config: Mapping[str, Any]) -> Iterator[str]:
    """Yield what partial offloading of the optimizer lacks."""
    offload = (ds_config.get("zero_optimization") or {}).get("offload_optimizer") or {}
    if offload.get("ratio", 1.0) not in (1.0, "auto") and train.optimizer != "deepspeed_adam":
        yield "zero_optimization.offload_optimizer.ratio: needs train.optimizer=deepspeed_adam"
