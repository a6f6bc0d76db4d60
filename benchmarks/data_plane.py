"""Measure data loading against targets D1-D4 and D6-D9 (docs/targets.md), and at 1,024 ranks (data_plane_ranks.py).

Rivals: data_rivals_timing.py.

    python benchmarks/data_plane.py            all sections, as Markdown
    python benchmarks/data_plane.py first      one section

Sections that need a fresh process (D1) start one. The case of 1e9 examples in 256 domains is a synthetic manifest:
every domain has 3,906,250 examples whose lengths are in a memory-mapped file; tokens are generated when they are read.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from data_plane_ranks import section_ranks

NUM_DOMAINS, DOMAIN_SIZE = 256, 3_906_250


class ManifestOnly:
    """One domain of a synthetic manifest: lengths by memory map, tokens made up."""

    def __init__(self, path: Path, name: str) -> None:
        import numpy as np

        self.name = name
        self.lengths = np.memmap(path, dtype=np.int32, mode="r")
        self.loss_lengths = np.memmap(path.with_suffix(".loss"), dtype=np.int32, mode="r")
        self.num_examples = len(self.lengths)

    def read(self, index: int) -> tuple:
        """Return tokens that are all 1; the first bears no loss."""
        import numpy as np

        length = int(self.lengths[index])
        return np.ones(length, dtype=np.int32), np.arange(length) > 0


def write_lengths(folder: Path, *, size: int) -> Path:
    """Write log-normal lengths to a file, and loss lengths, one less, to another; int32."""
    import numpy as np

    path = folder / "lengths.bin"
    lengths = np.clip(np.random.default_rng(0).lognormal(5.7, 0.9, size), 8, 8192).astype(np.int32)
    lengths.tofile(path)
    (lengths - 1).tofile(path.with_suffix(".loss"))
    return path


def first_batch(path: Path) -> None:
    """Open 1e9 examples in 256 domains and make the first batch and a resumed one; print figures as JSON."""
    started = time.perf_counter()
    import numba  # noqa: F401
    import numpy as np
    import torch  # noqa: F401

    imported, before = time.perf_counter(), memory_mib()
    from versatune_ds.data.loader import LoaderSettings, MixtureLoader
    from versatune_ds.domains import DomainSet

    names = tuple(f"domain{k:03d}" for k in range(NUM_DOMAINS))
    weights_K = np.random.default_rng(1).dirichlet(np.ones(NUM_DOMAINS))

    def make() -> MixtureLoader:
        return MixtureLoader(
            [ManifestOnly(path, name) for name in names],
            domain_set=DomainSet(names),
            settings=LoaderSettings(seed=0, rows_per_batch=64, row_tokens=8192, rows_per_micro_batch=8, world_size=8),
        )

    loader = make()
    loader.plan(1, weights_K)
    loader.take(1)
    first = time.perf_counter()
    state = loader.state_dict(1)
    state["draws"] = [draws + 10**9 for draws in state["draws"]]
    figures = {
        "imports_seconds": imported - started,
        "first_batch_seconds": first - imported,
        "own_mib": memory_mib()["RssAnon"] - before["RssAnon"],
        "mapped_mib": memory_mib()["RssFile"] - before["RssFile"],
        "state_bytes": len(json.dumps(state)),
    }
    resumed = time.perf_counter()
    loader = make()
    loader.load_state_dict({**state, "step": 10**6})
    loader.plan(10**6 + 1, weights_K)
    loader.take(10**6 + 1)
    print(json.dumps({**figures, "resume_seconds": time.perf_counter() - resumed}))


def memory_mib() -> dict[str, float]:
    """Return the resident memory of this process in MiB: its own (RssAnon) and pages of mapped files (RssFile)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if line.startswith("Rss"))
    return {name: int(value.split()[0]) / 1024 for name, value in fields.items()}


def section_first() -> Iterator[str]:
    """D1, D2, D8: first batch and resume at 1e9 examples in 256 domains."""
    yield "| 1e9 examples, 256 domains, 64 x 8192 tokens | cold (nothing compiled) | warm | target |"
    yield "|---|---:|---:|---:|"
    with tempfile.TemporaryDirectory() as name:
        path = write_lengths(Path(name), size=DOMAIN_SIZE)
        runs = [_run_first(path, cache=Path(name) / "cache") for _ in range(6)]
    cold, warm = runs[0], {key: statistics.median(run[key] for run in runs[1:]) for key in runs[0]}
    rows = {
        "imports (torch, numba), not counted below": ("imports_seconds", "s", ""),
        "D1 first batch after them": ("first_batch_seconds", "s", "< 5 s / < 1 s"),
        "D1 memory of its own added (RssAnon)": ("own_mib", "MiB", "< 64 MB"),
        "D1 page cache mapped (RssFile), reclaimable": ("mapped_mib", "MiB", ""),
        "D2 resume at draw 2.6e11: new loader to next batch": ("resume_seconds", "s", "< 0.1 s"),
        "D8 state": ("state_bytes", "bytes", "<= 64 kB"),
    }
    for text, (key, unit, target) in rows.items():
        yield f"| {text} | {cold[key]:,.3f} {unit} | {warm[key]:,.3f} {unit} | {target} |"


def _run_first(path: Path, *, cache: Path) -> dict[str, float]:
    """Run `first_batch` in a fresh process with its own cache of compiled code."""
    environ = {**os.environ, "NUMBA_CACHE_DIR": str(cache)}
    command = [sys.executable, __file__, "--first-batch", str(path)]
    return json.loads(subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout)


def section_plan() -> Iterator[str]:
    """D6, D9: fill, and examples planned per second, on one core."""
    import numpy as np

    from versatune_ds.data.order.plan import PlanSettings, plan_step
    from versatune_ds.data.order.sampler import SamplerState

    yield "| plan only, six domains | examples a step | fill, mean | fill, worst | time, median | examples/s |"
    yield "|---|---:|---:|---:|---:|---:|"
    for row_tokens in (4096, 8192):
        orders = _six_orders(longest=row_tokens)
        for rows in (8, 16, 64, 512, 8192):
            settings = PlanSettings(rows_per_batch=rows, row_tokens=row_tokens)
            state, fills, seconds, examples = SamplerState.start(6), [], [], 0
            for step in range(100 if rows < 1000 else 12):
                started = time.perf_counter()
                plan = plan_step(state, np.array(_weights()), step=step, orders=orders, settings=settings)
                seconds.append(time.perf_counter() - started)
                fills.append(plan.fill)
                examples += plan.num_examples
                state = plan.state_after
            median, mean_examples = statistics.median(seconds), examples / len(seconds)
            yield (
                f"| {rows} rows x {row_tokens} | {mean_examples:,.0f} | {statistics.mean(fills):.2%} "
                f"| {min(fills):.2%} | {1e3 * median:.2f} ms | {mean_examples / median / 1e6:.2f} M |"
            )


def section_shares() -> Iterator[str]:
    """D4: realised against requested shares while the weights move at every step."""
    import numpy as np

    from versatune_ds.data.order.plan import PlanSettings, plan_step
    from versatune_ds.data.order.sampler import WEIGHT_SCALE, SamplerState

    orders, settings = _six_orders(longest=4096), PlanSettings(rows_per_batch=16, row_tokens=4096)
    rng, state = np.random.default_rng(0), SamplerState.start(6)
    requested, realised, debts = [], [], []
    logits = np.log(_weights())
    for step in range(400):
        logits = logits + rng.normal(0, 0.05, 6)
        weights_K = np.exp(logits) / np.exp(logits).sum()
        plan = plan_step(state, weights_K, step=step, orders=orders, settings=settings)
        requested.append(plan.requested_units_K)
        realised.append(plan.realised_units_K)
        state = plan.state_after
        debts.append(np.abs(state.deficit_K).max() / WEIGHT_SCALE)
    difference = np.cumsum(np.array(realised) - np.array(requested), axis=0)
    total = np.cumsum(np.array(realised).sum(axis=1))
    worst = max(np.abs(difference[s + 100] - difference[s]).max() / (total[s + 100] - total[s]) for s in range(300))
    yield (
        "D4, weights moving at every step, 400 steps of 16 x 4096 tokens: worst difference of realised and requested "
        f"share over any 100 steps {worst:.4%} (target 0.5 %); largest debt of a domain {max(debts):,.0f} tokens, "
        "longest example 4096."
    )


def section_wait() -> Iterator[str]:
    """D3, D7: what a step waits for data, and what a change of weights costs."""
    import datasets
    import numpy as np
    from data_corpus import DOMAINS, open_shards, write_corpus

    from versatune_ds.data.loader import LoaderSettings, MixtureLoader
    from versatune_ds.domains import DomainSet

    datasets.disable_progress_bars()
    step_seconds = 0.2
    with tempfile.TemporaryDirectory() as name:
        write_corpus(Path(name), size=2000, longest=4096)
        loader = MixtureLoader(
            open_shards(Path(name)),
            domain_set=DomainSet(DOMAINS),
            settings=LoaderSettings(seed=0, rows_per_batch=16, row_tokens=4096, rows_per_micro_batch=4),
        )
        weights_K, other_K = np.array(_weights()), np.array(_weights()[::-1])
        for step in (1, 2):
            loader.plan(step, weights_K)
        waits, asks = [], []
        for step in range(1, 61):
            started = time.perf_counter()
            loader.plan(step + 2, other_K if step % 2 else weights_K)
            asks.append(time.perf_counter() - started)
            waits.append(loader.take(step).wait_seconds)
            time.sleep(step_seconds)
        loader.close()
    wait = statistics.mean(waits[5:])
    yield (
        f"D7, steps of {step_seconds:.1f} s with 16 x 4096 tokens: a step waits {1e3 * wait:.3f} ms for data, "
        f"{wait / step_seconds:.3%} of its time (target 0.5 %)."
    )
    yield ""
    yield (
        f"D3, other weights at every step: the call that passes them takes {1e6 * statistics.median(asks):.0f} us "
        "(target < 1 ms); they act on the first step not planned yet, 3 steps on."
    )


def _weights() -> tuple[float, ...]:
    """Return the weights of the six domains."""
    from data_corpus import WEIGHTS

    return WEIGHTS


def _six_orders(*, longest: int) -> list:
    """Return orders of six domains of a million examples with realistic lengths."""
    import numpy as np
    from data_corpus import DOMAINS, MEDIAN_TOKENS, realistic_lengths

    from versatune_ds.data.order.permutation import DomainOrder

    rng = np.random.default_rng(0)
    orders = []
    for name, median in zip(DOMAINS, MEDIAN_TOKENS, strict=True):
        lengths = realistic_lengths(rng, median_tokens=median, size=1_000_000, longest=longest)
        orders.append(DomainOrder.of(name, seed=0, lengths=lengths, loss_lengths=lengths * 2 // 3))
    return orders


SECTIONS: dict[str, Callable[[], Iterator[str]]] = {
    "first": section_first,
    "plan": section_plan,
    "shares": section_shares,
    "wait": section_wait,
    "ranks": section_ranks,
}


def main() -> None:
    """Print the sections asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sections", nargs="*", help=f"any of {', '.join(SECTIONS)}; all by default")
    parser.add_argument("--first-batch", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.first_batch:
        first_batch(args.first_batch)
        return
    for section in args.sections or SECTIONS:
        print("\n".join(SECTIONS[section]()), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
