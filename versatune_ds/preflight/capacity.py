"""Check that a run fits: into a GPU's memory, into the model's positions, and on the disk.

`checkpoint.keep` checkpoints exist while the next one is written, so the disk must have room for one more.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from versatune_ds.config import RunConfig
from versatune_ds.distributed.gpus import is_cpu_meant
from versatune_ds.engine.ds_features import has_bf16_states
from versatune_ds.engine.ds_settings import zero_stage
from versatune_ds.model.build import DTYPES, special_ids_of_tokenizer
from versatune_ds.preflight.data import encode_sample
from versatune_ds.preflight.memory_estimate import (
    MemoryEstimate,
    ModelSize,
    estimate_memory,
    measure_model,
    optimizer_bytes,
    parameter_bytes,
)
from versatune_ds.preflight.subject import Subject, once
from versatune_ds.run_folder.names import CHECKPOINTS_FOLDER
from versatune_ds.run_folder.writable_folders import WAY_OUT, unwritable_path
from versatune_ds.text_table import counted
from versatune_ds.training.finding import Finding, fail, ok, warn
from versatune_ds.training.prepared_data import cache_folder

_RUNTIME_GIB = 1.0
"""Assumed for the CUDA context, NCCL and cuBLAS workspaces; not measured here."""

_MARGIN = 0.9
"""Share of the memory that an estimate may fill before it counts as tight: allocators leave gaps."""

_CACHE_BYTES_PER_TOKEN = 13
"""Prepared data besides the text of their records: ids (4 bytes), in the shards and while they are built, and loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Estimates:
    """A model's size and its memory."""

    size: ModelSize
    chosen: MemoryEstimate
    """With gradient checkpointing as the recipe has it."""
    other: MemoryEstimate
    """With gradient checkpointing turned the other way."""


@once
def estimates_of(subject: Subject) -> _Estimates:
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
    if size.num_active is not None:
        trained += f"; a token uses {size.num_active / 1e6:,.1f} M (its experts), memory is needed for all"
    yield ok("model", "model", f"{size.name}, {size.num_parameters / 1e6:,.1f} M parameters{trained}")
    if size.four_bit_sizes:
        dtype, num_quantised = DTYPES[config.train.precision], sum(size.four_bit_sizes)
        found = f"{num_quantised / 1e6:,.1f} M weights in 4 bits: all weights {gib(parameter_bytes(size, dtype=dtype))}"
        unquantised = gib(size.num_parameters * dtype.itemsize)
        yield ok("model", "model.load_in_4bit", f"{found}, {unquantised} in {config.train.precision}")
    yield ok("model", "model.attention", size.attention)
    switch = "without" if config.model.gradient_checkpointing else "with"
    states = chosen.parameters + chosen.gradients + chosen.optimizer
    yield ok(
        "memory",
        f"ZeRO-{zero_stage(subject.ds_config)}, {counted(subject.world_size, 'rank')}",
        f"always {gib(states)}: parameters {gib(chosen.parameters)}, gradients {gib(chosen.gradients)}, optimizer "
        f"{gib(chosen.optimizer)}",
    )
    yield ok(
        "memory",
        "at the peak",
        f"plus the larger of {gib(chosen.activations + chosen.head + chosen.buffers)} in a pass (activations "
        f"{gib(chosen.activations)}, {gib(other.activations)} {switch} gradient checkpointing, head chunk "
        f"{gib(chosen.head)}, buffers {gib(chosen.buffers)}) and {gib(chosen.step)} in the optimizer's step",
    )
    yield _compare_with_gpu(subject, estimates)
    if config.checkpoint.background:
        copied = snapshot_bytes(config, size=size, ds_config=subject.ds_config, world_size=subject.world_size)
        about = f"{gib(copied)} of the host's memory in each process while a checkpoint is written, at most"
        yield ok("memory", "checkpoint.background", f"{about}; not compared with this machine's")


def _compare_with_gpu(subject: Subject, estimates: _Estimates) -> Finding:
    """Compare the estimate with the memory of a GPU, given or seen here, or with the RAM of a run on CPUs."""
    is_gpu_meant = subject.request.gpus_per_node is not None and not is_cpu_meant(subject.request.environ)
    if subject.start.device_type == "cpu" and not is_gpu_meant:
        return _compare_with_ram(subject, estimates)
    needed = estimates.chosen.peak / 2**30 + _RUNTIME_GIB
    key, memory = "--gpu-memory", subject.request.gpu_memory_gib
    if memory is None and subject.num_gpus_here:
        key, memory = "GPU here", torch.cuda.get_device_properties(0).total_memory / 2**30
    about = f"about {needed:,.1f} GiB a GPU ({_RUNTIME_GIB:g} of them assumed for CUDA itself)"
    if memory is None:
        return ok(
            "memory", key, f"{about}; not compared: no GPU here to ask; give a GPU's memory with --gpu-memory GIB"
        )
    if needed <= _MARGIN * memory:
        return ok("memory", key, f"{about} of {memory:,.1f}")
    todo = _ways_to_save(subject, estimates)
    if needed <= memory:
        return warn("memory", key, f"{about} of {memory:,.1f}: tight", todo)
    return fail("memory", key, f"{about}, but it has {memory:,.1f}", todo)


def _compare_with_ram(subject: Subject, estimates: _Estimates) -> Finding:
    """Compare the estimate of a run on CPUs with the RAM that each process of this machine has; never a failure.

    Python, its libraries and prepared data are not in the estimate, and part of the RAM is others'.
    """
    needed, key = estimates.chosen.peak / 2**30, "RAM a process"
    about = f"trains on the CPU: about {needed:,.1f} GiB a process beside Python's own"
    if not subject.start.is_here:
        return ok("memory", key, f"{about}; not compared: the run is on other machines")
    num_here = subject.gpus_per_node
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    processes = counted(num_here, "process", plural="processes")
    each = f"{memory / num_here:,.1f} GiB of RAM, this machine's {memory:,.1f} over {processes}"
    if needed <= _MARGIN * memory / num_here:
        return ok("memory", key, f"{about}, of {each}")
    return warn("memory", key, f"{about}, but each has {each}", _ways_to_save(subject, estimates))


def _ways_to_save(subject: Subject, estimates: _Estimates) -> str:
    """Return what saves memory, the cheapest first."""
    config, ways = subject.config, []
    if not config.model.gradient_checkpointing:
        ways.append(f"model.gradient_checkpointing=true saves {gib(estimates.chosen.peak - estimates.other.peak)}")
    if config.train.rows_per_micro_batch > 1:
        ways.append("a smaller train.rows_per_micro_batch")
    model = config.model
    if model.lora is not None and model.name_or_path is not None and not model.load_in_4bit:
        ways.append("model.load_in_4bit=true")
    if zero_stage(subject.ds_config) < 3 and not model.load_in_4bit:
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


def checkpoint_bytes(config: RunConfig, *, size: ModelSize, ds_config: Mapping[str, Any]) -> int:
    """Return the size of a checkpoint: weights, and what the optimizer keeps.

    Under ZeRO-3 trained weights are written once, as the optimizer's fp32 copies. Weights frozen beside adapters are
    not written where the base model's own files have them.
    """
    stage = zero_stage(ds_config)
    has_frozen = config.model.lora is None or config.model.name_or_path is None
    num_weights = size.num_parameters - size.num_trained if has_frozen else 0
    num_weights += 0 if stage == 3 else size.num_trained
    weights = num_weights * DTYPES[config.train.precision].itemsize
    return weights + size.num_trained * optimizer_bytes(config, stage=stage, is_bf16=has_bf16_states(ds_config))


def snapshot_bytes(config: RunConfig, *, size: ModelSize, ds_config: Mapping[str, Any], world_size: int) -> int:
    """Return the bytes of the largest rank's copy for `checkpoint.background`, which is what it writes.

    Rank 0 writes all weights below ZeRO-3 and its share of the optimizer; under stage 0 the optimizer is not divided.
    """
    stage, whole = zero_stage(ds_config), checkpoint_bytes(config, size=size, ds_config=ds_config)
    states = size.num_trained * optimizer_bytes(config, stage=stage)
    if stage == 3:
        return whole // world_size
    return whole - states + (states if stage == 0 else states // world_size)


def check_disk(subject: Subject) -> Iterator[Finding]:
    """Compare checkpoints, then prepared data, with the free space of their folders."""
    config = subject.config
    # Checkpoints.
    one = checkpoint_bytes(config, size=estimates_of(subject).size, ds_config=subject.ds_config)
    folder = config.run_dir / CHECKPOINTS_FOLDER  # may be a link to another disk
    existing = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())  # a resumed run deletes them
    num_best = 0 if config.checkpoint.best is None else 1
    needed = one * (config.checkpoint.keep + num_best + 1) - existing
    best = ", the best one" if num_best else ""
    about = f"{config.checkpoint.keep} checkpoints{best} and one being written, {gib(one)} each"
    todo = "keep fewer, or set run.output_dir"
    yield _compare_with_disk("checkpoint.keep", about, needed=needed, folder=folder, todo=todo)
    # Prepared data.
    num_tokens = sum(
        encode_sample(subject, name).mean_tokens * subject.sample(name, "train").num_rows
        for name in subject.readable_domains()
    )
    about = f"prepared data, about {num_tokens / 1e6:,.1f} M tokens"
    needed = int(subject.num_bytes + num_tokens * _CACHE_BYTES_PER_TOKEN)
    todo = "set data.cache_dir to a larger disk"
    yield _compare_with_disk("data.cache_dir", about, needed=needed, folder=cache_folder(config), todo=todo)


def _compare_with_disk(key: str, about: str, *, needed: int, folder: Path, todo: str) -> Finding:
    """Compare what is needed with what is free, and check that the folder can be written."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if (unwritable := unwritable_path(folder)) is not None:
        return fail("disk", key, f"{unwritable} cannot be written", WAY_OUT)
    if needed > free:
        return fail("disk", key, f"{about}: {gib(needed)}, but {existing} has {gib(free)} free", todo)
    return ok("disk", key, f"{about}; {gib(free)} free in {existing}")
