"""Derive DeepSpeed's config from the recipe, in this one place.

A user's DeepSpeed JSON has the settings of ZeRO, offload and communication; batch sizes, precision, clipping and the
optimizer come from the recipe's `train` section. If both set a value and differ, that is an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from versatune_ds.config import TrainConfig
from versatune_ds.config.row_groups import check_ranks_divide
from versatune_ds.engine.ds_names import named_settings, nearest_settings
from versatune_ds.paths import PROJECT_DIR


def num_micro_steps(train: TrainConfig, *, world_size: int) -> int:
    """Return the micro-steps (gradient accumulation) of one optimizer step.

    Worked example: 16 rows a batch, 2 a micro-batch, 4 processes: 16 / (2 * 4) = 2 micro-steps.

    Raises:
        ValueError: If the rows of a batch do not divide over processes and micro-batches.
    """
    num_at_once = rows_at_once(train, world_size=world_size)
    if train.rows_per_batch % num_at_once:
        shared = f", {train.sequence_parallel} of which share a row" if train.sequence_parallel > 1 else ""
        raise ValueError(
            f"train.rows_per_batch: {train.rows_per_batch} rows do not divide into micro-batches of "
            f"train.rows_per_micro_batch={train.rows_per_micro_batch} on {world_size} processes{shared}; "
            f"expected a multiple of {num_at_once}"
        )
    return train.rows_per_batch // num_at_once


def rows_at_once(train: TrainConfig, *, world_size: int) -> int:
    """Return the rows of one micro-step over all processes; raise ValueError if those do not divide into groups."""
    check_ranks_divide(world_size=world_size, num_slices=train.sequence_parallel)
    return train.rows_per_micro_batch * (world_size // train.sequence_parallel)


def read_deepspeed_json(source: Path | Mapping[str, Any]) -> dict[str, Any]:
    """Return the user's DeepSpeed settings from a name, a JSON file or a mapping in the recipe.

    Raises:
        ValueError: If the file is missing or is not a JSON object; the message has file and line.
    """
    if not isinstance(source, Path):
        return dict(source)
    named = named_settings(source)
    if named is not None:
        return named
    source = source if source.is_file() else PROJECT_DIR / source  # recipes refer to ds_configs/ of the project
    if not source.is_file():
        raise ValueError(f"train.deepspeed: no such file {source}; {nearest_settings(source)}")
    try:
        values = json.loads(source.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"train.deepspeed: {source}:{error.lineno}: not valid JSON: {error.msg}") from None
    if not isinstance(values, dict):
        raise ValueError(f"train.deepspeed: {source}: expected a JSON object with key zero_optimization")
    return values


def zero_stage(settings: Mapping[str, Any]) -> int:
    """Return the ZeRO stage of DeepSpeed settings; 0 where none is given.

    Raises:
        ValueError: If it is none of 0 to 3, or zero_optimization is not an object.
    """
    zero = settings.get("zero_optimization") or {}
    if not isinstance(zero, Mapping):
        raise ValueError(f'train.deepspeed: zero_optimization={zero!r}: expected an object such as {{"stage": 1}}')
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise ValueError(f"train.deepspeed: zero_optimization.stage={stage!r}: expected 0, 1, 2 or 3")
    return int(stage)


def offload_device(settings: Mapping[str, Any], key: str) -> str | None:
    """Return the target of `offload_optimizer` or `offload_param`, cpu or nvme; None without offload."""
    device = ((settings.get("zero_optimization") or {}).get(key) or {}).get("device", "none")
    return None if device == "none" else str(device)


def deepspeed_config(train: TrainConfig, *, world_size: int) -> dict[str, Any]:
    """Return the full config for DeepSpeed.

    Raises:
        ValueError: If the user's DeepSpeed settings contradict the `train` section, or set what only a recipe may set.
    """
    settings = read_deepspeed_json(train.deepspeed)
    for key, recipe_key in _DECIDED_BY_THE_RECIPE.items():
        if key in settings:
            raise ValueError(f"train.deepspeed: {key!r} is set there; leave it out, {recipe_key} decides")
    derived = {
        # DeepSpeed counts rows by rank, and so each slice of a row as one; it checks this number and uses it nowhere.
        "train_batch_size": train.rows_per_batch * train.sequence_parallel,
        "train_micro_batch_size_per_gpu": train.rows_per_micro_batch,
        "gradient_accumulation_steps": num_micro_steps(train, world_size=world_size),
        "gradient_clipping": train.max_grad_norm,
        "bf16": {"enabled": train.precision == "bf16"},
        "fp16": {"enabled": train.precision == "fp16"},
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": settings.get("steps_per_print", 2**31),
    }
    for key, value in derived.items():
        _check_agreement(settings, key=key, value=value)
    if train.precision == "bf16" and zero_stage(settings) == 0:
        # deepspeed 0.19.8: with stage 0 the bf16 wrapper takes a spurious first step (Adam's counter starts at 1).
        raise ValueError(
            "train.precision: bf16 needs ZeRO stage 1 or higher, but train.deepspeed asks for stage 0; use "
            "ds_configs/zero1.json, or fp32"
        )
    if train.precision == "fp16" and zero_stage(settings) == 0 and grad_accum_dtype(settings) == "fp32":
        # deepspeed 0.19.8 raises NotImplementedError once the model is built.
        raise ValueError(
            "train.deepspeed: data_types.grad_accum_dtype=fp32 needs ZeRO stage 2 or 3 where train.precision is fp16; "
            "use ds_configs/zero2.json, or leave it out"
        )
    kept = {key: {**settings[key], **derived[key]} for key in ("bf16", "fp16") if isinstance(settings.get(key), dict)}
    defaults = _defaults(train, settings, num_micro_steps=derived["gradient_accumulation_steps"])
    return {**settings, **defaults, **derived, **kept}


def grad_accum_dtype(settings: Mapping[str, Any]) -> str | None:
    """Return the format in which DeepSpeed sums the gradients of micro-steps; None for that of the model."""
    return (settings.get("data_types") or {}).get("grad_accum_dtype")


def _defaults(train: TrainConfig, settings: Mapping[str, Any], *, num_micro_steps: int) -> dict[str, Any]:
    """Return our defaults for blocks of DeepSpeed's config; what the user sets in them comes first.

    The throughput timer waits for the device twice a micro-step, for a number that nobody reads here.

    In 16 bits the gradients of several micro-steps are summed in fp32 where DeepSpeed can (deepspeed 0.19.8, read from
    its sources): bf16 keeps 8 bits, so a sum of A micro-steps loses up to A - 1 roundings of 2^-9. Stage 2 without
    offloading and stage 3 add each micro-step's averaged gradient into an fp32 partition: 4 bytes a parameter instead
    of 2, divided over the ranks. Left as they are: stage 1 in bf16, where DeepSpeed would take another optimizer
    wrapper that cannot load earlier checkpoints; stage 2 with offloading, which sums in the model's format whatever is
    set; stage 0, which refuses it.
    """
    blocks: dict[str, Any] = {"timers": {"throughput": {"enabled": False}, **(settings.get("timers") or {})}}
    stage = zero_stage(settings)
    has_fp32_sum = stage == 3 or (stage == 2 and offload_device(settings, "offload_optimizer") is None)
    if train.precision != "fp32" and num_micro_steps > 1 and has_fp32_sum:
        blocks["data_types"] = {"grad_accum_dtype": "fp32", **(settings.get("data_types") or {})}
    return blocks


_DECIDED_BY_THE_RECIPE = {
    "optimizer": "train.optimizer",
    "scheduler": "train.learning_rate_schedule",
    "amp": "train.precision",
    "torch_autocast": "train.precision",
    "elasticity": "train.rows_per_batch",
    "curriculum_learning": "the mixture section",
    "data_efficiency": "the mixture section",
}
"""DeepSpeed's keys for settings that belong into the recipe."""

_RECIPE_KEYS = {
    "train_batch_size": "train.rows_per_batch",
    "train_micro_batch_size_per_gpu": "train.rows_per_micro_batch",
    "gradient_accumulation_steps": "train.rows_per_batch",
    "gradient_clipping": "train.max_grad_norm",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "zero_force_ds_cpu_optimizer": "train.optimizer",
    "zero_allow_untested_optimizer": "train.optimizer",
}


def _check_agreement(settings: Mapping[str, Any], *, key: str, value: Any) -> None:
    """Raise ValueError if the user's settings differ from the recipe; "auto" never does."""
    given = settings.get(key, "auto")
    if isinstance(value, dict) and isinstance(given, dict):
        given, value = given.get("enabled", "auto"), value["enabled"]
    if key in _RECIPE_KEYS and given != "auto" and given != value:
        raise ValueError(
            f"train.deepspeed: {key}={given!r} contradicts {_RECIPE_KEYS[key]}, which gives {value!r}; drop it there"
        )
