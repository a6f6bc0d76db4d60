"""Estimate the memory of one GPU: weights, gradients, optimizer, buffers by ZeRO stage, and what a micro-batch needs.

The estimate is a sum of named parts, each with its formula here. `benchmarks/memory_estimate.py` compares the sum with
measured runs; `benchmarks/results/memory_estimate.md` has the errors.

What DeepSpeed keeps (0.19.8, from its sources and measured), for P parameters of b bytes, T of them trained, W ranks:

    stage   weights   gradients            fp32 copies and Adam       buffers
    0       P b       T b                  8 T (fp16: + 4 T)          min(T, bucket) b   one flattened all-reduce
    1, 2    P b       T b, partition a     12 T / W                   bucket b (twice with overlap_comm)
    3       P b / W   T a / W              12 T / W                   bucket b, min(P, max_live) b of gathered weights

With `model.load_in_4bit` the weights of linear layers are 0.52 bytes each (model/four_bit.py), and a pass dequantises
one layer's weight at a time.

a is the bytes of a gradient that is summed over micro-steps: b, or 4 with `data_types.grad_accum_dtype: fp32`. The
optimizer's step adds a gradient in fp32 (none at stage 2 where the sum is in fp32 already) and, unless AdamW is fused,
two temporaries. With `bf16.bf16_optimizer_states` the copies and Adam take 6 T / W; the step is counted as before.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from versatune_ds.config import RunConfig
from versatune_ds.engine.ds_features import has_bf16_states
from versatune_ds.engine.ds_settings import grad_accum_dtype, offload_device, zero_stage
from versatune_ds.engine.optimizer import has_fused_adamw
from versatune_ds.kernels.head_loss import chunk_rows
from versatune_ds.kernels.linear_head import DEFAULT_CHUNK_MIB
from versatune_ds.model.attention import use_countable_attention
from versatune_ds.model.attention_choice import describe_attention, machine_here, machine_of
from versatune_ds.model.build import DTYPES, build_causal_lm
from versatune_ds.model.four_bit import four_bit_bytes, quantisable_sizes
from versatune_ds.model.router_loss import router_loss_of
from versatune_ds.model.sizes import num_learned_positions, sizes_of
from versatune_ds.preflight.activations import PassBytes, decoder_pass_bytes, move_to_fake_cpu

_FP32_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSize:
    """What the estimate needs to know of a model; counted without its weights."""

    name: str
    num_parameters: int
    num_trained: int
    vocabulary: int
    hidden: int
    is_head_trained: bool
    max_positions: int | None
    """Longest text that the model was made for; None if its config does not state it."""
    num_learned_positions: int | None
    """Rows of its table of positions; None where it computes them."""
    attention: str
    """How its attention is computed, and why."""
    four_bit_sizes: tuple[int, ...] = ()
    """Weights of each layer that is loaded in 4 bits."""
    num_active: int | None = None
    """Parameters that one token uses, in a mixture of experts; all of them take memory. None for another model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """The parts of one GPU's memory, in bytes."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    head: int
    buffers: int
    step: int
    """Beyond the states while the optimizer steps, when activations are freed."""

    @property
    def peak(self) -> int:
        """Return the most that is alive at once: in the passes, or in the optimizer's step."""
        states = self.parameters + self.gradients + self.optimizer
        return states + max(self.activations + self.head + self.buffers, self.step)


def measure_model(
    config: RunConfig,
    *,
    vocab_size: int,
    is_checkpointed: bool,
    special_ids: dict[str, int],
    device_type: str | None = None,
) -> tuple[ModelSize, PassBytes]:
    """Return a recipe's model in numbers, and what a micro-batch needs in its decoder; no weights are read or made.

    Args:
        config: The recipe.
        vocab_size: Length of the tokenizer.
        is_checkpointed: Whether gradient checkpointing is on.
        special_ids: bos, eos and pad ids for a model made from config.
        device_type: cpu or cuda, where it will run, which decides its attention; None for this machine's.

    Raises:
        ValueError: If the model's config is wrong or cannot be found, or its attention cannot be computed there.
    """
    precision = config.train.precision
    machine = machine_here(precision) if device_type is None else machine_of(device_type, precision=precision)
    model = config.model.model_copy(update={"gradient_checkpointing": is_checkpointed})
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers 5 renames its switch for gradient checkpointing
        causal_lm = build_causal_lm(
            model,
            precision=precision,
            vocab_size=vocab_size,
            special_ids=special_ids,
            reads_weights=False,
            machine=machine,
        )
    attention = describe_attention(causal_lm, wanted=model.attention, machine=machine)
    use_countable_attention(causal_lm)
    with FakeTensorMode():
        move_to_fake_cpu(causal_lm)
        passes = decoder_pass_bytes(
            causal_lm,
            num_rows=config.train.rows_per_micro_batch,
            row_tokens=config.data.row_tokens // config.train.sequence_parallel,
            has_router_loss=router_loss_of(causal_lm) is not None,
        )
    passes = _with_masks_of_rows(passes, config, has_mask=causal_lm.config._attn_implementation == "sdpa")
    sizes = tuple(quantisable_sizes(causal_lm)) if model.load_in_4bit else ()
    return _size_of(causal_lm, attention=attention, four_bit_sizes=sizes), passes


def _with_masks_of_rows(passes: PassBytes, config: RunConfig, *, has_mask: bool) -> PassBytes:
    """Add what slices do not divide: the mask of sdpa is that of complete rows, one byte for each two tokens."""
    num_slices, T = config.train.sequence_parallel, config.data.row_tokens
    if num_slices == 1 or not has_mask:
        return passes
    added = config.train.rows_per_micro_batch * (T**2 - (T // num_slices) ** 2)
    return PassBytes(saved=passes.saved + added, peak=passes.peak + added)


def _size_of(causal_lm: Any, *, attention: str, four_bit_sizes: tuple[int, ...]) -> ModelSize:
    """Return a transformers model in numbers."""
    head, parameters = causal_lm.get_output_embeddings(), list(causal_lm.parameters())
    return ModelSize(
        name=type(causal_lm).__name__,
        num_parameters=sum(parameter.numel() for parameter in parameters),
        num_trained=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        vocabulary=head.weight.shape[0],
        hidden=head.weight.shape[1],
        is_head_trained=head.weight.requires_grad,
        max_positions=sizes_of(causal_lm.config).max_positions,
        num_learned_positions=num_learned_positions(causal_lm),
        attention=attention,
        four_bit_sizes=four_bit_sizes,
        num_active=num_active_parameters(causal_lm),
    )


def num_active_parameters(causal_lm: Any) -> int | None:
    """Return the parameters that one token uses in a mixture of experts; None for another model.

    Example: of 8 experts of 100 weights each a token uses 2, so 200 of 800 are active.
    """
    sizes = sizes_of(causal_lm.config)
    if sizes.num_experts is None or sizes.num_experts_per_token is None:
        return None
    num_routed = sum(part.numel() for name, part in causal_lm.named_parameters() if ".experts." in name)
    num_others = sum(part.numel() for part in causal_lm.parameters()) - num_routed
    return num_others + num_routed * sizes.num_experts_per_token // sizes.num_experts


def parameter_bytes(size: ModelSize, *, dtype: torch.dtype) -> int:
    """Return the bytes of all weights: those in 4 bits with their scales, the others in a dtype."""
    others = size.num_parameters - sum(size.four_bit_sizes)
    return others * dtype.itemsize + int(sum(map(four_bit_bytes, size.four_bit_sizes)))


def estimate_memory(
    config: RunConfig, *, size: ModelSize, passes: PassBytes, ds_config: Mapping[str, Any], world_size: int
) -> MemoryEstimate:
    """Return the memory of one of `world_size` GPUs.

    Offloaded optimizer states and parameters count as nothing here: they lie in the host's memory.
    """
    # Settings, and how many elements this rank has.
    dtype, stage = DTYPES[config.train.precision], zero_stage(ds_config)
    given, num_bytes = ds_config.get("zero_optimization", {}), dtype.itemsize
    zero = {key: value for key, value in given.items() if value != "auto"}  # DeepSpeed then takes its default
    num_tokens = config.train.rows_per_micro_batch * (config.data.row_tokens // config.train.sequence_parallel)
    head_now, head_kept = _head_bytes(size, num_tokens=num_tokens, dtype=dtype)
    # States: weights, gradients, and what the optimizer keeps.
    share = size.num_trained / world_size if stage > 0 else size.num_trained
    is_offloaded = offload_device(ds_config, "offload_optimizer") is not None
    gathered = min(size.num_parameters, int(zero.get("stage3_max_live_parameters", 1e9)))
    # Gradients: in which format they are summed, and what the optimizer's step adds to them.
    sum_bytes = _FP32_BYTES if grad_accum_dtype(ds_config) == "fp32" else num_bytes
    is_summed_for_step = stage == 2 and sum_bytes != num_bytes
    num_temporaries = 0 if has_fused_adamw(config.train, ds_config=ds_config, device_type="cuda") else 2
    parameters = parameter_bytes(size, dtype=dtype)
    dequantised = max(size.four_bit_sizes, default=0) * num_bytes
    if stage == 3:
        parameters = 0 if offload_device(ds_config, "offload_param") else parameters // world_size
    return MemoryEstimate(
        parameters=parameters,
        gradients=int(_gradient_bytes(size, stage=stage, share=share, num_bytes=num_bytes, sum_bytes=sum_bytes)),
        optimizer=0
        if is_offloaded
        else int(optimizer_bytes(config, stage=stage, is_bf16=has_bf16_states(ds_config)) * share),
        activations=max(passes.saved + head_now, passes.peak + dequantised + head_kept) - head_now,
        head=head_now,
        buffers=int(
            _bucket_elements(size, zero=zero, stage=stage) * num_bytes + (gathered * num_bytes if stage == 3 else 0)
        ),
        step=0
        if is_offloaded
        else int(_step_bytes(share, zero=zero, stage=stage, num_copies=num_temporaries + (not is_summed_for_step))),
    )


def optimizer_bytes(config: RunConfig, *, stage: int, is_bf16: bool = False) -> int:
    """Return the bytes kept of a trained parameter: two moments of Adam, and an fp32 copy where there is one.

    Args:
        config: The recipe.
        stage: ZeRO stage.
        is_bf16: Whether the moments and the copy are in bf16 (`bf16_optimizer_states`): 6 bytes instead of 12.
    """
    if is_bf16:
        return 3 * torch.bfloat16.itemsize
    moments = 2 if config.train.optimizer == "adamw_8bit" else 2 * _FP32_BYTES
    has_copy = stage > 0 or DTYPES[config.train.precision] != torch.float32
    return moments + _FP32_BYTES if has_copy else moments


def _gradient_bytes(size: ModelSize, *, stage: int, share: float, num_bytes: int, sum_bytes: int) -> float:
    """Return the bytes of the gradients that are kept through a backward pass.

    At stage 1 the sum over micro-steps is of all gradients where it has a format of its own.
    """
    if stage == 0:
        return size.num_trained * num_bytes
    if stage == 1:
        summed = share * num_bytes if sum_bytes == num_bytes else size.num_trained * sum_bytes
        return size.num_trained * num_bytes + summed
    return share * sum_bytes


def _bucket_elements(size: ModelSize, *, zero: Mapping[str, Any], stage: int) -> int:
    """Return the elements of the buffers that gradients are reduced in.

    With contiguous gradients (DeepSpeed's default) ZeRO makes them of full size whatever the model's size.
    """
    bucket = int(zero.get("reduce_bucket_size", 5e8))
    if stage == 0 or not zero.get("contiguous_gradients", True):
        return min(size.num_trained, bucket)
    return bucket * (2 if zero.get("overlap_comm", False) and stage < 3 else 1)


def _step_bytes(share: float, *, zero: Mapping[str, Any], stage: int, num_copies: int) -> float:
    """Return what the optimizer's step adds: so many fp32 values for each element that it steps at once."""
    elements = min(share, float(zero.get("sub_group_size", 1e9))) if stage == 3 else share
    return num_copies * _FP32_BYTES * elements


def _head_bytes(size: ModelSize, *, num_tokens: int, dtype: torch.dtype) -> tuple[int, int]:
    """Return the head's bytes while it computes the loss, and those it keeps for the backward pass.

    The head computes its gradients in the forward pass: of the hidden states, and of its weight where it is trained,
    summed in fp32 when there is more than one chunk.
    """
    chunks = chunk_rows(
        num_tokens, vocabulary=size.vocabulary, element_bytes=dtype.itemsize, chunk_mib=DEFAULT_CHUNK_MIB
    )
    logits = chunks[0].stop * size.vocabulary * dtype.itemsize
    hidden = num_tokens * size.hidden * dtype.itemsize
    num_trained = size.vocabulary * size.hidden if size.is_head_trained else 0
    weight, summed = num_trained * dtype.itemsize, num_trained * _FP32_BYTES if len(chunks) > 1 else 0
    is_half = dtype != torch.float32
    kept = hidden + weight
    return max(logits + 2 * hidden + (summed or weight), (summed if is_half else 0) + kept + logits), kept
