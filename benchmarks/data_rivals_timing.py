"""Time loaders side by side: packed tokens per second on one core, start, resume, change of weights (D2, D3, D5).

    python benchmarks/data_rivals_timing.py --size 10000

Every contender mixes the same six domains, packs with the same best fit and returns the same tensors. Rounds are
interleaved, after a warm-up; medians are printed as a Markdown table. One core: the process is pinned to it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
from data_corpus import import_streaming, write_corpus
from data_rivals import BatchShape, HfIterable, HfMap, Mosaic, Ours


def seconds_of(call: Callable[[], Any]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def start_and_first(contender: Any) -> None:
    """Open a contender and make its first batch."""
    contender.start()
    contender.next_batch()


def tokens_per_second(contender: Any, *, num_batches: int) -> float:
    """Return packed tokens (padding not counted) per second over some batches."""
    started = time.perf_counter()
    num_tokens = 0
    for _ in range(num_batches):
        num_tokens += int((contender.next_batch().input_ids != 0).sum())
    return num_tokens / (time.perf_counter() - started)


def main() -> None:
    """Write the corpus, run the rounds, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=10_000, help="examples a domain")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=15, help="batches a round")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--row-tokens", type=int, default=4096)
    args = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    shape = BatchShape(rows=args.rows, row_tokens=args.row_tokens)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder, size=args.size, longest=args.row_tokens)
        kinds = [Ours, HfMap, HfIterable] + ([Mosaic] if import_streaming() else [])
        contenders = [kind(folder, shape) for kind in kinds]
        start_and_first(Ours(folder, shape))  # compiles, or loads what was compiled
        starts = [seconds_of(lambda c=c: start_and_first(c)) for c in contenders]
        rates: list[list[float]] = [[] for _ in contenders]
        for _ in range(args.rounds):
            for i, contender in enumerate(contenders):
                rates[i].append(tokens_per_second(contender, num_batches=args.batches))
        resumes = [seconds_of(contender.resume) for contender in contenders]
        changes = [seconds_of(contender.change_weights) for contender in contenders]
    print(f"{shape.rows} rows x {shape.row_tokens} tokens, six domains of {args.size} examples, one core\n")
    print(
        "| loader | packed tokens/s | ours is faster by | start to first batch | resume to next batch | other weights |"
    )
    print("|---|---:|---:|---:|---:|---:|")
    ours = statistics.median(rates[0])
    for contender, rate, *times in zip(contenders, rates, starts, resumes, changes, strict=True):
        rate = statistics.median(rate)
        milliseconds = " | ".join(f"{1e3 * seconds:,.1f} ms" for seconds in times)
        print(f"| {contender.name} | {rate / 1e6:,.2f} M | {ours / rate:,.1f}x | {milliseconds} |")


if __name__ == "__main__":
    main()
