"""DeepSpeed's settings that this project does not support: why, and which key of a recipe to use instead.

Keys of deepspeed 0.19. A value that turns the feature off is accepted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

GONE = "the installed DeepSpeed no longer has it; leave it out"
_ONE_COPY = "here every process has its own rows of a batch"
_OWN_CHECKPOINTS = "another checkpoint writer is not supported: a checkpoint is complete or does not count"
_QUANTISED = (
    "rounding what ranks exchange is not supported: losses would differ from those of the other ZeRO stages, and it "
    "needs several GPUs to be tested; leave it out"
)
_RECOMPUTE = (
    "it acts only in models that call DeepSpeed's own checkpoint function, which those of transformers do not; "
    "model.gradient_checkpointing=true recomputes activations"
)
_DIVISION = "the loss is divided by the tokens of the global batch, so gradients need no other scaling; leave it out"
_AUTO_EP = (
    "AutoEP of deepspeed 0.19.8 fails on Mixtral and Qwen3-MoE of transformers 5.24, needs an optimizer of its own "
    "above ZeRO stage 0, and renames weights that checkpoints and exports need"
)
_ZERO_3 = "to fit a larger model use ZeRO stage 3 (ds_configs/zero3.json)"

UNSUPPORTED: Mapping[str, str] = {
    "sequence_parallel_size": "for processes that share long rows set train.sequence_parallel, and leave this out",
    "data_parallel_size": "the number of processes and train.sequence_parallel decide; leave it out",
    "tensor_parallel": f"tensor parallelism is not supported: {_ONE_COPY}; {_ZERO_3}",
    "autotp_size": f"tensor parallelism is not supported: {_ONE_COPY}; {_ZERO_3}",
    "expert_parallel": f"expert parallelism is not supported: {_AUTO_EP}; {_ZERO_3}",
    "use_data_before_expert_parallelism": "expert parallelism is not supported; leave it out",
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
    "datastates": _OWN_CHECKPOINTS,
    "datastates_config": _OWN_CHECKPOINTS,
    "datastates_ckpt": _OWN_CHECKPOINTS,
    "checkpoint.writer": _OWN_CHECKPOINTS,
    "checkpoint.parallel_write": _OWN_CHECKPOINTS,
    "checkpoint.use_node_local_storage": "a checkpoint lies in one folder that all nodes see; leave it out",
    "activation_checkpointing.partition_activations": _RECOMPUTE,
    "activation_checkpointing.cpu_checkpointing": _RECOMPUTE,
    "activation_checkpointing.contiguous_memory_optimization": _RECOMPUTE,
    "activation_checkpointing.synchronize_checkpoint_boundary": _RECOMPUTE,
    "activation_checkpointing.profile": _RECOMPUTE,
    "autotuning": "it ends a run after a few steps to start others; versatune check estimates memory",
    "gradient_allreduce_op": "the gradient of a batch is a mean over ranks, and a sum would be larger by their number; "
    "leave it out",
    "gradient_predivide_factor": _DIVISION,
    "prescale_gradients": _DIVISION,
    "check_overflow": "DeepSpeed no longer reads it; bf16.check_grad_overflow is its name now",
    "dataloader_drop_last": "a run loads its data itself, and every batch has train.rows_per_batch rows; leave it out",
    "data_types.param_dtype": "train.precision decides; leave it out",
    "fp16.fp16_master_weights_and_grads": "master weights in fp16 lose small updates; leave it out, or use "
    "train.precision=bf16 with bf16.bf16_master_weights_and_grads",
    "zero_optimization.legacy_stage1": GONE,
    "zero_optimization.elastic_checkpoint": "a run converts its own checkpoints where it must; leave it out",
    "zero_optimization.zero_quantized_weights": _QUANTISED,
    "zero_optimization.zero_quantized_nontrainable_weights": f"{_QUANTISED}, or use model.load_in_4bit",
    "zero_optimization.zero_quantized_gradients": _QUANTISED,
    "zero_optimization.save_muon_momentum_buffer_in_memory": "Muon is not supported: it needs a learning rate of its "
    "own beside train.learning_rate",
    "zero_optimization.stage3_module_granularity_threshold": "deepspeed 0.19.8 then fails in the backward pass; list "
    "classes in zero_optimization.leaf_module instead",
    "zero_optimization.offload_optimizer.super_offload": "SuperOffload needs a Grace Hopper machine to be tested; use "
    "zero_optimization.offload_optimizer alone",
}
"""Dotted key -> why it is not supported, and what to do."""


def unsupported_lines(settings: Mapping[str, Any], *, removed: Collection[str]) -> Iterator[str]:
    """Yield one line for each key that DeepSpeed knows and this project does not support.

    Args:
        settings: DeepSpeed's config.
        removed: Keys that the installed DeepSpeed refuses, whatever their value.
    """
    for key, reason in UNSUPPORTED.items():
        *parents, name = key.split(".")
        block: Any = settings
        for parent in parents:
            block = block.get(parent) if isinstance(block, Mapping) else None
        if isinstance(block, Mapping) and name in block and (key in removed or not _is_off(block[name])):
            yield f"train.deepspeed: {key!r}: {reason}"
    if (settings.get("zero_optimization") or {}).get("compute_grad_norm", True) is False:
        yield (
            "train.deepspeed: 'zero_optimization.compute_grad_norm': train.max_grad_norm and the log need the norm; "
            "leave it out"
        )
    for key in settings:
        if key in removed and key not in UNSUPPORTED:
            yield f"train.deepspeed: {key!r}: {GONE}"


def _is_off(value: Any) -> bool:
    """Return whether a setting turns its feature off: false, 1 process, an empty block or one that is not enabled."""
    if isinstance(value, Mapping):
        switches = [value[name] for name in ("enabled", "deepcompile", "pipeline_stage") if name in value]
        sizes = [value[name] for name in ("autotp_size", "autoep_size", "tp_size", "stages") if name in value]
        has_either = bool(switches or sizes)
        return not value or (has_either and not any(switches) and all(size in (0, 1, None) for size in sizes))
    return value in (None, False, 0, 1, "auto", "mean") and value is not True
