"""Check the names and values inside the blocks of DeepSpeed's settings.

DeepSpeed 0.19.8 reads some blocks with a pydantic model, which ends the run after the language model is built; of the
others it ignores names that it does not know. Both are found here, with the nearest name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from deepspeed.comm.config import CommsLoggerConfig
from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from pydantic import BaseModel, ValidationError

from versatune_ds.config.expected_values import PAIRS, expected_in_words
from versatune_ds.domains import nearest_name

MODELS: Mapping[str, type[BaseModel]] = {
    "zero_optimization": DeepSpeedZeroConfig,
    "bf16": DeepSpeedBF16Config,
    "fp16": DeepSpeedFP16Config,
    "comms_logger": CommsLoggerConfig,
    "tensorboard": TensorBoardConfig,
    "wandb": WandbConfig,
    "csv_monitor": CSVConfig,
    "comet": CometConfig,
}
"""Block -> DeepSpeed's own model of it."""

NAMES: Mapping[str, frozenset[str]] = {
    "activation_checkpointing": frozenset({
        "partition_activations", "number_checkpoints", "contiguous_memory_optimization",
        "synchronize_checkpoint_boundary", "profile", "cpu_checkpointing",
    }),
    "flops_profiler": frozenset({
        "enabled", "recompute_fwd_factor", "profile_step", "module_depth", "top_modules", "detailed", "output_file",
    }),
    "checkpoint": frozenset({
        "tag_validation", "load_universal", "use_node_local_storage", "parallel_write", "writer",
        "checkpoint_serialization",
    }),
    "data_types": frozenset({"grad_accum_dtype", "param_dtype", "buffer_dtype", "keep_in_fp32_modules"}),
    "aio": frozenset({
        "block_size", "queue_depth", "intra_op_parallelism", "single_submit", "overlap_events", "use_gds",
    }),
    "timers": frozenset({"throughput"}),
}  # fmt: skip
"""Block -> names that DeepSpeed 0.19 reads in it, where it has no model."""


def block_lines(settings: Mapping[str, Any], *, removed_of_zero: Collection[str]) -> Iterator[str]:
    """Yield one line for each mistake inside a block.

    Args:
        settings: DeepSpeed's config.
        removed_of_zero: Names in zero_optimization that are reported elsewhere.
    """
    for block in (*MODELS, *NAMES):
        values = settings.get(block)
        if values is None:
            continue
        if not isinstance(values, Mapping):
            yield f"train.deepspeed: {block}={values!r}: {PAIRS}"
        elif block in NAMES:
            unknown = [name for name in values if name not in NAMES[block]]
            yield from (f"{_unknown(block, name)}; {nearest_name(name, sorted(NAMES[block]))}" for name in unknown)
        else:
            kept = {name: value for name, value in values.items() if name not in removed_of_zero}
            yield from _model_lines(block, kept)


def _model_lines(block: str, values: Mapping[str, Any]) -> Iterator[str]:
    """Yield one line for each value that DeepSpeed's model of a block refuses."""
    try:
        MODELS[block](**values)
    except ValidationError as error:
        yield from (_model_line(block, details) for details in error.errors())


def _model_line(block: str, details: Any) -> str:
    """Describe one mistake in one line."""
    key = ".".join([block, *map(str, details["loc"])])
    if details["type"] != "extra_forbidden":
        expected = expected_in_words(details["type"], details.get("ctx", {}), details["msg"])
        # An error of several values together brings them all: DeepSpeed's message has them already.
        value = f"={details['input']!r}" if details["loc"] else ""
        return f"train.deepspeed: {key}{value}: {expected}"
    if len(details["loc"]) > 1:
        return _unknown(block, ".".join(map(str, details["loc"])))
    fields = MODELS[block].model_fields
    known = sorted(str(field.alias or name) for name, field in fields.items())
    return f"{_unknown(block, str(details['loc'][0]))}; {nearest_name(str(details['loc'][0]), known)}"


def _unknown(block: str, name: str) -> str:
    return f"train.deepspeed: unknown key '{block}.{name}'"
