"""Compare the memory that `versatune check` estimates with what real training allocates, on two CPU processes.

PyTorch's profiler sees every allocation of a tensor, on the CPU as on a GPU. The peak of their running sum is what a
GPU's allocator would need, without the gaps between its blocks.

    python benchmarks/memory_estimate.py
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import tempfile
from dataclasses import dataclass
from typing import Any

os.environ.update(DS_ACCELERATOR="cpu", OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")

import torch
from torch.profiler import ProfilerActivity, profile

from versatune_ds.config.load import parse_config
from versatune_ds.distributed import World, free_port, join_world, leave_world
from versatune_ds.preflight.capacity import checkpoint_bytes, estimates_of
from versatune_ds.preflight.subject import CheckRequest, Subject
from versatune_ds.run_folder.checkpoint_files import complete_checkpoints
from versatune_ds.training.assemble import assemble_run
from versatune_ds.training.loop import measure_before_training, train

NUM_RANKS = 2
SIZES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
    "larger": {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6},
}
BUCKET = 2_000_000
"""Elements of ZeRO's buckets; the default of 5e8 would hide everything else in models of this size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One case: estimated and measured bytes of memory on one rank, and of a checkpoint."""

    case: str
    estimated: int
    allocated: int
    checkpoint_estimated: int
    checkpoint_written: int


def recipe(size: str, *, stage: int, precision: str, is_checkpointed: bool, folder: str, cache: str) -> Any:
    """Return the config of a run of three steps of two micro-steps."""
    zero = {"stage": stage, "reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET}
    zero |= {"overlap_comm": stage >= 2, "contiguous_gradients": True}
    model = {"model_type": "llama", "tie_word_embeddings": True, "num_key_value_heads": 2, **SIZES[size]}
    return parse_config(
        {
            "run": {"name": "measured", "output_dir": folder},
            "model": {"from_config": model, "tokenizer_vocab_size": 2048, "gradient_checkpointing": is_checkpointed},
            "data": {"synthetic": {"num_rows": 200, "num_valid_rows": 4}, "row_tokens": 512, "cache_dir": cache},
            "train": {
                "steps": 3,
                "rows_per_batch": 2 * 2 * NUM_RANKS,
                "rows_per_micro_batch": 2,
                "precision": precision,
                "deepspeed": {"zero_optimization": zero},
            },
            "mixture": {"policy": "uniform"},
        }
    )


def measure(config: Any, *, rank: int, port: int, answers: Any) -> None:
    """Train as one rank, and send the peak of the bytes that its tensors had."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    world = World(rank=rank, world_size=NUM_RANKS, local_rank=rank)
    join_world(world, device=torch.device("cpu"))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run = assemble_run(config, world=world, device=torch.device("cpu"), is_fresh=True)
        measure_before_training(run)
        train(run)
        run.loader.close()
    run.monitor.finish(exit_code=0)
    leave_world()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    answers.put((rank, max(itertools.accumulate(num_bytes for _, num_bytes in changes))))


def measure_case(config: Any, *, case: str) -> Measured:
    """Measure one case in forked ranks, and estimate it here."""
    context, port = multiprocessing.get_context("fork"), free_port()
    answers = context.Queue()
    ranks = [
        context.Process(target=measure, args=(config,), kwargs={"rank": rank, "port": port, "answers": answers})
        for rank in range(NUM_RANKS)
    ]
    for process in ranks:
        process.start()
    peaks = [answers.get(timeout=300)[1] for _ in ranks]
    for process in ranks:
        process.join()
    subject = Subject(config, CheckRequest(gpus_per_node=NUM_RANKS), num_gpus_here=0)
    estimates = estimates_of(subject)
    (folder,) = complete_checkpoints(config.run_dir)[:1]
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Measured(
        case=case,
        estimated=estimates.chosen.peak,
        allocated=max(peaks),
        checkpoint_estimated=checkpoint_bytes(config, size=estimates.size, ds_config=subject.ds_config),
        checkpoint_written=written,
    )


def cases(sizes: list[str], stages: list[int]) -> list[tuple[str, int, str, bool]]:
    """Return every size, stage, precision that DeepSpeed has on a CPU, with and without gradient checkpointing."""
    every = itertools.product(sizes, stages, ("fp32", "bf16"), (False, True))
    return [case for case in every if not (case[1] == 0 and case[2] == "bf16")]


def main() -> None:
    """Measure all cases and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--stages", nargs="+", type=int, default=[0, 1, 2, 3])
    arguments = parser.parse_args()
    print(
        "| model | ZeRO | precision | checkpointing | estimate MiB | measured MiB | error | checkpoint's error |",
        flush=True,
    )
    print("|---|---:|---|---|---:|---:|---:|---:|", flush=True)
    with tempfile.TemporaryDirectory() as cache:
        for size, stage, precision, is_checkpointed in cases(arguments.sizes, arguments.stages):
            with tempfile.TemporaryDirectory() as folder:
                config = recipe(
                    size, stage=stage, precision=precision, is_checkpointed=is_checkpointed, folder=folder, cache=cache
                )
                found = measure_case(config, case=size)
            error = found.estimated / found.allocated - 1
            checkpoint_error = found.checkpoint_estimated / found.checkpoint_written - 1
            print(
                f"| {size} | {stage} | {precision} | {'yes' if is_checkpointed else 'no'} "
                f"| {found.estimated / 2**20:.1f} | {found.allocated / 2**20:.1f} | {error:+.1%} "
                f"| {checkpoint_error:+.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
