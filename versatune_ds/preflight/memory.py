"""Check that model, states and a micro-batch fit into a GPU's memory, and the examples into the model's positions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from versatune_ds.engine.ds_settings import zero_stage
from versatune_ds.model.build import special_ids_of_tokenizer
from versatune_ds.preflight.memory_estimate import MemoryEstimate, ModelSize, estimate_memory, measure_model
from versatune_ds.preflight.rows import encode_sample
from versatune_ds.preflight.subject import Subject
from versatune_ds.training.finding import Finding, fail, ok, warn

_RUNTIME_GIB = 1.0
"""Assumed for the CUDA context, NCCL and cuBLAS workspaces; not measured here."""

_MARGIN = 0.9
"""Share of the memory that an estimate may fill before it counts as tight: allocators leave gaps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Estimates:
    """A model's size and its memory, as the recipe has it and with gradient checkpointing turned the other way."""

    size: ModelSize
    chosen: MemoryEstimate
    other: MemoryEstimate


def estimates_of(subject: Subject) -> _Estimates:
    """Return the estimates of a recipe, made once."""
    return subject.once("estimates", lambda: _estimate(subject))


def _estimate(subject: Subject) -> _Estimates:
    """Measure the model and estimate its memory, with gradient checkpointing and without."""
    config, found = subject.config, {}
    for is_checkpointed in (False, True):
        size, passes = measure_model(
            config,
            vocab_size=subject.vocab_size,
            is_checkpointed=is_checkpointed,
            special_ids=special_ids_of_tokenizer(subject.tokenizer),
            device_type=subject.start.device_type,
        )
        found[is_checkpointed] = estimate_memory(
            config, size=size, passes=passes, ds_config=subject.ds_config, world_size=subject.world_size
        )
    chosen = config.model.gradient_checkpointing
    return _Estimates(size=size, chosen=found[chosen], other=found[not chosen])


def check_memory(subject: Subject) -> Iterator[Finding]:
    """Estimate the memory of one GPU part by part, and compare it with what there is."""
    estimates, config = estimates_of(subject), subject.config
    size, chosen, other = estimates.size, estimates.chosen, estimates.other
    trained = "" if size.num_trained == size.num_parameters else f", {size.num_trained / 1e6:,.1f} M of them trained"
    yield ok("model", "model", f"{size.name}, {size.num_parameters / 1e6:,.1f} M parameters{trained}")
    yield ok("model", "model.attention", size.attention)
    switch = "without" if config.model.gradient_checkpointing else "with"
    yield ok(
        "memory",
        f"ZeRO-{zero_stage(subject.ds_config)}, {subject.world_size} ranks",
        f"parameters {gib(chosen.parameters)}, gradients {gib(chosen.gradients)}, optimizer {gib(chosen.optimizer)}, "
        f"activations {gib(chosen.activations)} ({gib(other.activations)} {switch} gradient checkpointing), "
        f"head chunk {gib(chosen.head)}, buffers {gib(chosen.buffers)}, optimizer step {gib(chosen.step)}",
    )
    yield _compare(subject, chosen, other)


def _compare(subject: Subject, chosen: MemoryEstimate, other: MemoryEstimate) -> Finding:
    """Compare the estimate with the memory of a GPU, given or seen here."""
    needed = chosen.peak / 2**30 + _RUNTIME_GIB
    key, memory = "--gpu-memory", subject.request.gpu_memory_gib
    if memory is None and subject.num_gpus_here:
        key, memory = "GPU here", torch.cuda.get_device_properties(0).total_memory / 2**30
    about = f"about {needed:,.1f} GiB a GPU ({_RUNTIME_GIB:g} of them assumed for CUDA itself)"
    if memory is None:
        return ok("memory", key, f"{about}; not compared: give the GPU's memory with --gpu-memory GIB")
    if needed <= _MARGIN * memory:
        return ok("memory", key, f"{about} of {memory:,.1f}")
    if needed <= memory:
        return warn("memory", key, f"{about} of {memory:,.1f}: tight", _advice(subject, chosen, other))
    return fail("memory", key, f"{about}, but it has {memory:,.1f}", _advice(subject, chosen, other))


def _advice(subject: Subject, chosen: MemoryEstimate, other: MemoryEstimate) -> str:
    """Return what saves memory, the cheapest first."""
    config, ways = subject.config, []
    if not config.model.gradient_checkpointing:
        ways.append(f"model.gradient_checkpointing=true saves {gib(chosen.peak - other.peak)}")
    if config.train.rows_per_micro_batch > 1:
        ways.append("a smaller train.rows_per_micro_batch")
    if zero_stage(subject.ds_config) < 3:
        ways.append("train.deepspeed=ds_configs/zero3.json")
    return "try " + ", ".join([*ways, "a smaller reduce_bucket_size", "more GPUs", "or offloading"])


def gib(num_bytes: float) -> str:
    """Return bytes as GiB, with as many digits as a small model needs."""
    return f"{num_bytes / 2**30:,.{1 if num_bytes >= 2**30 else 3}f} GiB"


def check_positions(subject: Subject) -> Iterator[Finding]:
    """Compare the longest sampled example with the positions: a failure where they are learned, else a warning."""
    size = estimates_of(subject).size
    row_tokens, room = subject.config.data.row_tokens, size.num_learned_positions or size.max_positions
    if room is None or row_tokens <= room:
        return
    names = subject.readable_domains()
    longest, is_whole = 0, True
    with contextlib.suppress(ValueError):  # what is wrong with rows or template is reported by their checks
        longest = max((encode_sample(subject, name).longest_tokens for name in names), default=0)
        is_whole = all(file.is_whole for name in names for file in subject.readable_files(name))
    todo = f"set data.row_tokens={room} or less"
    if size.num_learned_positions is None and longest > room:
        yield warn("model", "data.row_tokens", f"an example of {longest} tokens; the model was made for {room}", todo)
    elif longest > room:
        found = f"an example of {longest} tokens, but the model has learned {room} positions"
        yield fail("model", "data.row_tokens", found, todo)
    elif not (is_whole and longest):
        found = f"{row_tokens} tokens, but the model has {room} positions; no sampled example is longer"
        yield warn("model", "data.row_tokens", found, todo)
