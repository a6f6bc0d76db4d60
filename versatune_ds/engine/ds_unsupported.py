"""DeepSpeed's settings that this project does not support: why, and which key of a recipe to use instead.

Keys of deepspeed 0.19. A value that turns the feature off is accepted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

GONE = "the installed DeepSpeed no longer has it; leave it out"
_ONE_COPY = "here every process has its own rows of a batch"
_ZERO_3 = "to fit a larger model use ZeRO stage 3 (ds_configs/zero3.json)"

UNSUPPORTED: Mapping[str, str] = {
    "sequence_parallel_size": f"sequence parallelism is not supported: {_ONE_COPY}; for long rows use "
    "model.gradient_checkpointing=true, or a smaller data.row_tokens",
    "data_parallel_size": "it belongs to sequence parallelism, which is not supported; the number of processes decides",
    "tensor_parallel": f"tensor parallelism is not supported: {_ONE_COPY}; {_ZERO_3}",
    "autotp_size": f"tensor parallelism is not supported: {_ONE_COPY}; {_ZERO_3}",
    "expert_parallel": f"expert parallelism is not supported: {_ONE_COPY}, and all experts of the model; {_ZERO_3}",
    "use_data_before_expert_parallelism": "expert parallelism is not supported",
    "pipeline": f"pipeline parallelism is not supported: the model runs as transformers has it; {_ZERO_3}",
    "zenflow": "ZenFlow steps parameters at different times, which is not supported; use "
    "zero_optimization.offload_optimizer alone",
    "zero_optimization.zenflow": "ZenFlow steps parameters at different times, which is not supported; use "
    "offload_optimizer alone",
    "weight_quantization": "quantised weights are not supported while training; quantise the exported model",
    "compression_training": "compression is not supported; compress the exported model",
    "quantize_training": "quantised weights are not supported while training; quantise the exported model",
    "compile": "it acts only where the engine's compile() is called; model.compile=true compiles the model's layers",
    "managed_gradient_accumulation": "micro-steps are counted by the run; train.rows_per_batch and "
    "train.rows_per_micro_batch decide",
    "checkpoint.load_universal": "a run converts its own checkpoints where it must; leave it out",
    "hybrid_engine": "generation between training steps is not part of a run; leave it out",
    "vocabulary_size": "it belongs to a feature DeepSpeed has dropped; leave it out",
    "progressive_layer_drop": "dropping layers is not supported; leave it out",
    "sparse_attention": "sparse attention is not supported; model.attention chooses the implementation",
    "datastates": "another checkpoint writer is not supported: a checkpoint is complete or does not count",
    "datastates_config": "another checkpoint writer is not supported: a checkpoint is complete or does not count",
}
"""Dotted key -> why it is not supported, and what to do."""


def unsupported_lines(settings: Mapping[str, Any], *, removed: Collection[str]) -> Iterator[str]:
    """Yield one line for each key that DeepSpeed knows and this project does not support.

    Args:
        settings: DeepSpeed's config.
        removed: Keys that the installed DeepSpeed refuses, whatever their value.
    """
    for key, reason in UNSUPPORTED.items():
        parent, _, name = key.rpartition(".")
        block = settings.get(parent, {}) if parent else settings
        if isinstance(block, Mapping) and name in block and (key in removed or not _is_off(block[name])):
            yield f"train.deepspeed: {key!r}: {reason}"
    for key in settings:
        if key in removed and key not in UNSUPPORTED:
            yield f"train.deepspeed: {key!r}: {GONE}"


def _is_off(value: Any) -> bool:
    """Return whether a setting turns its feature off: false, 1 process, an empty block or one that is not enabled."""
    if isinstance(value, Mapping):
        switches = [value[name] for name in ("enabled", "deepcompile") if name in value]
        sizes = [value[name] for name in ("autotp_size", "autoep_size", "tp_size", "stages") if name in value]
        has_either = bool(switches or sizes)
        return not value or (has_either and not any(switches) and all(size in (0, 1, None) for size in sizes))
    return value in (None, False, 0, 1, "auto") and value is not True
