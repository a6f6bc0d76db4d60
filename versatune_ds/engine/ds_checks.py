"""Check a user's DeepSpeed settings: their keys, and whether this machine can do what they require.

DeepSpeed 0.19.8 silently ignores a top-level key that it does not know, such as a misspelt one. A misspelt key of
zero_optimization ends the run after the model is built. Both are found here.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from deepspeed.ops.op_builder import AsyncIOBuilder
from deepspeed.runtime import config as deepspeed_config_module

from versatune_ds.config import ModelConfig, TrainConfig
from versatune_ds.domains import nearest_name
from versatune_ds.engine.ds_blocks import block_lines
from versatune_ds.engine.ds_features import check_features
from versatune_ds.engine.ds_settings import offload_device, zero_stage
from versatune_ds.engine.ds_unsupported import GONE, UNSUPPORTED, unsupported_lines

TOP_LEVEL_KEYS = frozenset({
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping", "bf16",
    "fp16", "zero_optimization", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "steps_per_print",
    "wall_clock_breakdown", "memory_breakdown", "dump_state", "log_level", "communication_data_type",
    "seq_parallel_communication_data_type", "prescale_gradients", "gradient_predivide_factor",
    "gradient_allreduce_op", "disable_allgather", "disable_python_gc",
    "activation_checkpointing", "comms_logger", "flops_profiler", "tensorboard", "wandb", "csv_monitor", "comet",
    "checkpoint", "data_types", "aio", "timers",
})  # fmt: skip
"""Keys of deepspeed 0.19 that a recipe may set; those that contradict the recipe are checked elsewhere."""

# Since 0.19.8 DeepSpeed raises for these as it starts, whatever their value.
_REMOVED = frozenset(getattr(deepspeed_config_module, "_REMOVED_TOP_LEVEL_CONFIG_KEYS", ()))
_REMOVED_OF_ZERO = frozenset(getattr(deepspeed_config_module, "_REMOVED_ZERO_CONFIG_KEYS", ()))


def check_deepspeed_settings(train: TrainConfig, ds_config: Mapping[str, Any], *, device_type: str) -> None:
    """Check, before anything takes time, all that DeepSpeed would refuse late or ignore.

    Args:
        train: The recipe's train section.
        ds_config: What `deepspeed_config` returned.
        device_type: Where the model will run, cpu or cuda.

    Raises:
        ValueError: One line for each mistake.
    """
    check_keys(ds_config)
    check_features(train, ds_config)
    if train.precision == "fp16" and device_type == "cpu":
        raise ValueError("train.precision: fp16 needs a GPU; use bf16 (ZeRO stage 1 or higher) or fp32 on the CPU")
    check_offload(ds_config)
    if train.optimizer == "adamw_8bit":
        check_8bit(ds_config, device_type=device_type)


def check_model_settings(model: ModelConfig, ds_config: Mapping[str, Any]) -> None:
    """Check for keys of the model section that ZeRO-3, which gathers weights module by module, does not support.

    Raises:
        ValueError: With the key and what to do.
    """
    if zero_stage(ds_config) != 3:
        return
    way_out = "not supported under ZeRO stage 3, which gathers weights module by module; use stage 2, or leave it out"
    if model.compile:
        raise ValueError(f"model.compile: {way_out}")
    if model.load_in_4bit:
        raise ValueError(
            "model.load_in_4bit: not supported under ZeRO stage 3, which would divide the packed weights without their "
            "scales; use stage 1 or 2 (train.deepspeed=zero1)"
        )
    if model.lora is not None and model.lora.use_dora:
        # peft 0.21 reads the weights of other modules: shape errors with checkpointing, partitions in large layers.
        raise ValueError(f"model.lora.use_dora: {way_out}")


def check_keys(settings: Mapping[str, Any]) -> None:
    """Check the names of all keys, and the values of blocks by DeepSpeed's own models.

    Raises:
        ValueError: One line for each key that is unknown, with the nearest one, or whose value DeepSpeed refuses.
    """
    lines = [
        f"train.deepspeed: unknown key {key!r}; {nearest_name(key, sorted(TOP_LEVEL_KEYS))}"
        for key in settings
        if key not in TOP_LEVEL_KEYS and key not in UNSUPPORTED and key not in _REMOVED
    ]
    lines += unsupported_lines(settings, removed=_REMOVED)
    zero = settings.get("zero_optimization") or {}
    lines += [f"train.deepspeed: 'zero_optimization.{key}': {GONE}" for key in zero if key in _REMOVED_OF_ZERO]
    lines += block_lines(settings, removed_of_zero=_REMOVED_OF_ZERO)
    if lines:
        raise ValueError("\n".join(lines))


def check_offload(settings: Mapping[str, Any]) -> None:
    """Check that this ZeRO stage and this machine support the offloading, and that its folder exists.

    Raises:
        ValueError: With the setting and what to do.
    """
    stage = zero_stage(settings)
    for key, lowest in (("offload_optimizer", 1), ("offload_param", 3)):
        device = offload_device(settings, key)
        if device is None:
            continue
        needed = 3 if device == "nvme" else lowest
        if stage < needed:
            raise ValueError(
                f"train.deepspeed: zero_optimization.{key} to {device} needs ZeRO stage {needed} or higher, but "
                f"zero_optimization.stage is {stage}"
            )
        if device == "nvme":
            _check_nvme(settings["zero_optimization"][key], key=key)


def _check_nvme(offload: Mapping[str, Any], *, key: str) -> None:
    """Check that the folder is given and exists, and that DeepSpeed's asynchronous I/O can be built."""
    path = offload.get("nvme_path")
    if path is None or not Path(path).is_dir():
        raise ValueError(
            f"train.deepspeed: zero_optimization.{key}.nvme_path={path!r}: expected a folder on a local NVMe disk"
        )
    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise ValueError(
            f"train.deepspeed: zero_optimization.{key} to nvme needs libaio's headers (apt-get install libaio-dev), "
            "which this machine lacks; offload to cpu instead"
        )


def check_8bit(ds_config: Mapping[str, Any], *, device_type: str) -> None:
    """Check that 8-bit optimizer states are possible: they must be on a GPU.

    Raises:
        ValueError: If bitsandbytes is missing, there is no GPU, or the optimizer is offloaded.
    """
    if device_type != "cuda":
        raise ValueError("train.optimizer: adamw_8bit needs a GPU; use adamw or deepspeed_adam on the CPU")
    if offload_device(ds_config, "offload_optimizer") is not None:
        raise ValueError(
            "train.optimizer: adamw_8bit needs its states on the GPU, but train.deepspeed offloads the optimizer; "
            "use deepspeed_adam"
        )
    if find_spec("bitsandbytes") is None:
        raise ValueError("train.optimizer: adamw_8bit needs the library bitsandbytes; pip install -e '.[8bit]'")
