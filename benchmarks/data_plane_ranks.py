"""Measure what one of 1,024 ranks does before a step: plan the batch of 1e9 examples in 256 domains, find its own rows.

    python benchmarks/data_plane.py ranks

Every rank computes the same plan, so one process shows what each of them does. Times are of one core: the clock of the
wall, which other programs of the machine lengthen, and the processor time of the thread.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

NUM_RANKS, ROW_TOKENS, NUM_STEPS = 1024, 8192, 40


def plan_for_ranks(path: Path, rows_per_batch: int) -> None:
    """Plan steps while the weights change at every step, divide them among the ranks, and print figures as JSON."""
    import numpy as np
    from data_plane import NUM_DOMAINS, memory_mib

    from versatune_ds.data.order.permutation import DomainOrder
    from versatune_ds.data.order.plan import PlanSettings, plan_step
    from versatune_ds.data.order.sampler import SamplerState

    before = memory_mib()["RssAnon"]
    lengths, loss_lengths = (np.memmap(file, dtype=np.int32, mode="r") for file in (path, path.with_suffix(".loss")))
    orders = [
        DomainOrder.of(f"domain{k}", seed=0, lengths=np.asarray(lengths), loss_lengths=np.asarray(loss_lengths))
        for k in range(NUM_DOMAINS)
    ]
    settings = PlanSettings(rows_per_batch=rows_per_batch, row_tokens=ROW_TOKENS)
    logits, rng, state = np.zeros(NUM_DOMAINS), np.random.default_rng(1), SamplerState.start(NUM_DOMAINS)
    wall, own, slices, examples = [], [], [], 0
    for step in range(NUM_STEPS):
        logits += rng.normal(0, 0.2, NUM_DOMAINS)
        weights_K = np.exp(logits) / np.exp(logits).sum()
        started, started_own = time.perf_counter(), time.thread_time()
        plan = plan_step(state, weights_K, step=step, orders=orders, settings=settings)
        wall.append(time.perf_counter() - started)
        own.append(time.thread_time() - started_own)
        started = time.perf_counter()
        share = rows_per_batch // NUM_RANKS
        parts = [plan.placement.rows(rank * share, (rank + 1) * share) for rank in range(NUM_RANKS)]
        slices.append((time.perf_counter() - started) / NUM_RANKS)
        assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
        assert parts[-1].stop == plan.num_examples
        examples, state = examples + plan.num_examples, plan.state_after
    figures = {"first": wall[0], "wall": wall[1:], "own": own[1:], "slice": statistics.median(slices)}
    print(json.dumps({**figures, "examples": examples / NUM_STEPS, "mib": memory_mib()["RssAnon"] - before}))


def section_ranks() -> Iterator[str]:
    """1,024 ranks: the plan of a step at 1e9 examples in 256 domains on one core, and its memory."""
    from data_plane import DOMAIN_SIZE, write_lengths

    yield (
        "| rows of 8192 tokens over 1,024 ranks | examples a step | plan, processor time, median | 95 % | wall clock, "
        "median | a rank's own rows | first plan | memory added (RssAnon) |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    with tempfile.TemporaryDirectory() as name:
        path = write_lengths(Path(name), size=DOMAIN_SIZE)
        for rows_per_batch in (1024, 2048, 8192):
            command = [sys.executable, __file__, str(path), str(rows_per_batch)]
            environ = {**os.environ, "OMP_NUM_THREADS": "1"}
            run = json.loads(subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout)
            late = statistics.quantiles(run["own"], n=20)[-1]
            yield (
                f"| {rows_per_batch:,} | {run['examples']:,.0f} | {1e3 * statistics.median(run['own']):.1f} ms "
                f"| {1e3 * late:.1f} ms | {1e3 * statistics.median(run['wall']):.1f} ms | {1e6 * run['slice']:.1f} us "
                f"| {run['first']:.2f} s | {run['mib']:.0f} MiB |"
            )


if __name__ == "__main__":
    plan_for_ranks(Path(sys.argv[1]), int(sys.argv[2]))
