"""Measure how long training waits for a checkpoint: saved at once, and in the background.

Two processes train a small Llama under DeepSpeed's ZeRO-2. In turn one step is followed by no save, by an ordinary one,
and by one in the background, which the steps after it overlap. Reported are the median seconds that the call takes, and
how much longer the steps are that a write overlaps. DeepSpeed's own save_checkpoint, without fsync and checksums, is
timed beside them.

    python benchmarks/save_time.py --output /tmp/save_time --hidden 512 --layers 6 --repeats 5
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import deepspeed
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from versatune_ds.distributed import World, barrier, free_port, join_world, leave_world
from versatune_ds.engine.background_save import start_save
from versatune_ds.engine.checkpoint import NewCheckpoint, save_checkpoint
from versatune_ds.engine.deepspeed_quirks import skip_shared_memory_op

KINDS = ("DeepSpeed's save_checkpoint", "ordinary", "background")


def main() -> None:
    """Run two processes and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    port, context = free_port(), multiprocessing.get_context("fork")
    ranks = [context.Process(target=run_rank, args=(args, rank, port)) for rank in range(args.processes)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    if any(process.exitcode for process in ranks):
        raise SystemExit(f"exit codes {[process.exitcode for process in ranks]}")
    sys.stdout.write((args.output / "table.md").read_text())


def run_rank(args: argparse.Namespace, rank: int, port: int) -> None:
    """Measure on one process; rank 0 writes the table."""
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), DS_ACCELERATOR="cpu",
        WORLD_SIZE=str(args.processes), LOCAL_WORLD_SIZE=str(args.processes), LOCAL_SIZE=str(args.processes),
    )  # fmt: skip
    world = World(rank=rank, world_size=args.processes, local_rank=rank, launcher="benchmark")
    join_world(world, device=torch.device("cpu"))
    skip_shared_memory_op()
    engine, tokens = build_engine(args)
    for _ in range(2):
        take_step(engine, tokens)
    waits: dict[str, list[float]] = {kind: [] for kind in KINDS}
    steps: dict[str, list[float]] = {kind: [] for kind in ("none", "background")}
    written: list[float] = []
    for number in range(args.repeats):
        for kind in KINDS:
            steps["none"].append(timed(lambda: take_step(engine, tokens)))
            save_once(
                kind, engine, tokens, args, world=world, step=number + 1, waits=waits, steps=steps, written=written
            )
    if world.is_rank_zero:
        size = sum(path.stat().st_size for path in newest_files(args.output / "ordinary"))
        num_parameters = sum(parameter.numel() for parameter in engine.module.parameters())
        (args.output / "table.md").write_text(table(waits, steps, written, num_parameters=num_parameters, size=size))
        (args.output / "times.json").write_text(json.dumps({"waits": waits, "steps": steps, "written": written}))
    barrier()
    leave_world()
    os._exit(0)


def build_engine(args: argparse.Namespace) -> tuple[Any, torch.Tensor]:
    """Return DeepSpeed's engine of a Llama made from its config, and a batch."""
    config = LlamaConfig(
        hidden_size=args.hidden, intermediate_size=4 * args.hidden, num_hidden_layers=args.layers, vocab_size=8192,
        num_attention_heads=8, num_key_value_heads=8,
    )  # fmt: skip
    torch.manual_seed(1)
    model = LlamaForCausalLM(config)
    settings = {
        "train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True}, "zero_optimization": {"stage": 2},
        "zero_allow_untested_optimizer": True,
    }  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)
    return engine, torch.arange(128).reshape(1, -1)


def take_step(engine: Any, tokens: torch.Tensor) -> None:
    """Train one step."""
    engine.backward(engine(input_ids=tokens, labels=tokens).loss)
    engine.step()


def timed(action: Any) -> float:
    """Return the seconds that an action takes until all ranks have done it."""
    barrier()
    started = time.perf_counter()
    action()
    barrier()
    return time.perf_counter() - started


def save_once(
    kind: str,
    engine: Any,
    tokens: torch.Tensor,
    args: argparse.Namespace,
    *,
    world: World,
    step: int,
    waits: dict[str, list[float]],
    steps: dict[str, list[float]],
    written: list[float],
) -> None:
    """Save once in one of the three ways, and record the times."""
    new = NewCheckpoint(run_dir=args.output / kind, step=step, state={}, keep=1, world=world)
    if kind == "ordinary":
        waits[kind].append(timed(lambda: save_checkpoint(engine, new)))
    elif kind == "background":
        began, saves = time.perf_counter(), []
        waits[kind].append(timed(lambda: saves.append(start_save(engine, new))))
        for _ in range(3):
            steps[kind].append(timed(lambda: take_step(engine, tokens)))
        outcome = saves[0].wait()
        if outcome.failure is not None:
            raise RuntimeError(outcome.failure)
        written.append(time.perf_counter() - began)
    else:
        from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

        engine.checkpoint_engine = TorchCheckpointEngine()
        folder = str(args.output / "deepspeed")
        waits[kind].append(timed(lambda: engine.save_checkpoint(folder, tag="step")))
        barrier()
        if world.is_rank_zero:
            shutil.rmtree(folder)


def newest_files(run_dir: Path) -> list[Path]:
    """Return the files of the checkpoint that is kept."""
    return [path for path in run_dir.rglob("*") if path.is_file()]


def table(
    waits: dict[str, list[float]],
    steps: dict[str, list[float]],
    written: list[float],
    *,
    num_parameters: int,
    size: int,
) -> str:
    """Return the result as Markdown."""
    size_text = f"{num_parameters / 1e6:.1f} M parameters, checkpoint {size / 2**20:.0f} MiB"
    heads = ["| save | training waits, median s | least | most |", "|---|---:|---:|---:|"]
    lines = [f"{size_text}, {len(written)} saves of each kind.", "", *heads]
    for kind, values in waits.items():
        lines.append(f"| {kind} | {statistics.median(values):.2f} | {min(values):.2f} | {max(values):.2f} |")
    plain, beside = statistics.median(steps["none"]), statistics.median(steps["background"])
    overlapped = f"A step takes {plain:.2f} s, one of the three after a background save {beside:.2f} s (medians)"
    lines += ["", f"{overlapped}; such a save is complete {statistics.median(written):.2f} s after it began."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
