"""Measure the memory of `versatune prepare` at growing numbers of rows, and which of its stages would be a bottleneck.

    python benchmarks/prepare_memory.py --rows 1000000 2000000 4000000
    python benchmarks/prepare_memory.py --rows 1000000 10000000 --stand-in

Every number of rows is prepared in a fresh process, from one file of tiny generated texts; a second process reads
/proc every 0.1 s. RssAnon is a process's own memory; RssFile are pages of mapped files, which the kernel takes back at
will. `--stand-in` replaces the encoder by one that makes up tokens, so that all the rest can be measured at numbers of
rows whose tokenising would take hours. It is Linux only.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_SAMPLE_SECONDS = 0.1
_TOKENS_PER_ROW = 12


def write_rows(path: Path, *, num_rows: int) -> None:
    """Write different short texts as JSON Lines."""
    with path.open("w", encoding="utf-8") as stream:
        for i in range(num_rows):
            stream.write(f'{{"text": "row {i}: {i * 7 % 1000} and {i * 13 % 997}"}}\n')


def prepare(path: Path, *, num_processes: int, is_stand_in: bool) -> None:
    """Prepare a file as one domain in this process; print seconds and digest as JSON."""
    from versatune_ds.config import DataConfig
    from versatune_ds.data.encoding.tokenizer import train_tokenizer
    from versatune_ds.data.prepare import record_blocks
    from versatune_ds.data.prepare.domains import prepare_domains
    from versatune_ds.data.prepare.encode_records import RecordEncoder

    tokenizer = train_tokenizer(["row 12: 7 and 13"] * 20, vocab_size=300, folder=path.parent / "tokenizer")
    data = DataConfig(domains={"rows": {"train": [str(path)]}}, num_processes=num_processes, row_tokens=64)
    if is_stand_in:
        RecordEncoder.__call__ = lambda self, batch: _made_up_lines(batch)
    count_seconds = time.process_time()
    record_blocks.count_records(path)
    count_seconds = time.process_time() - count_seconds
    started, used = time.perf_counter(), time.process_time()
    prepared = prepare_domains(data, tokenizer=tokenizer, cache_dir=path.parent / "cache")
    figures = {
        "seconds": time.perf_counter() - started,
        "own_seconds": time.process_time() - used,
        "count_seconds": count_seconds,
        "worker_seconds": resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime,
        "num_rows": sum(counts.num_rows for counts in prepared.counts),
        "num_duplicates": sum(counts.num_duplicates for counts in prepared.counts),
        "digest": prepared.digest,
    }
    print(json.dumps(figures))


def _made_up_lines(batch: Any) -> Any:
    """Return output lines with tokens that are all 1, and hashes spread over 64 bits."""
    import numpy as np
    import pyarrow as pa

    from versatune_ds.data.prepare.encode_records import OUTPUT_SCHEMA

    num_rows = batch.num_rows
    lines = batch["line"].to_numpy().astype(np.uint64)
    hashes = lines * np.uint64(0x9E3779B97F4A7C15)
    tokens = pa.array(np.ones(num_rows * _TOKENS_PER_ROW, dtype=np.int32))
    spans = pa.array(np.tile(np.array([1, _TOKENS_PER_ROW], dtype=np.int32), num_rows))
    no_names = pa.ListArray.from_arrays(pa.array(np.zeros(num_rows + 1, dtype=np.int32)), pa.array([], pa.string()))
    columns = {
        "file": batch["file"].combine_chunks(),
        "line": batch["line"].combine_chunks(),
        "piece": pa.array(np.zeros(num_rows, dtype=np.int32)),
        "input_ids": pa.ListArray.from_arrays(_offsets(num_rows, _TOKENS_PER_ROW), tokens),
        "loss_spans": pa.ListArray.from_arrays(_offsets(num_rows, 2), spans),
        "content_hash": pa.array(hashes),
        "num_row_tokens": pa.array(np.full(num_rows, _TOKENS_PER_ROW)),
        "num_cut_tokens": pa.array(np.zeros(num_rows, dtype=np.int64)),
        "problem": pa.array([""] * num_rows),
        "unread": no_names,
        "unread_labels": no_names,
        "warnings": no_names,
    }
    return pa.table(columns, schema=OUTPUT_SCHEMA)


def _offsets(num_rows: int, length: int) -> Any:
    import numpy as np
    import pyarrow as pa

    return pa.array(np.arange(num_rows + 1, dtype=np.int32) * length)


def measure(num_rows: int, *, num_processes: int, is_stand_in: bool, folder: Path | None) -> dict[str, Any]:
    """Prepare generated rows in a fresh process and return its figures, with peaks of memory in MiB."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        path = Path(name) / "rows.jsonl"
        write_rows(path, num_rows=num_rows)
        command = [sys.executable, __file__, "--prepare", str(path), "--processes", str(num_processes)]
        command += ["--stand-in"] * is_stand_in
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        peaks = {"own_mib": 0.0, "own_mapped_mib": 0.0, "worker_mib": 0.0}
        while process.poll() is None:
            own, workers = _memory_mib(process.pid), [_memory_mib(pid) for pid in _children(process.pid)]
            peaks["own_mib"] = max(peaks["own_mib"], own["RssAnon"])
            peaks["own_mapped_mib"] = max(peaks["own_mapped_mib"], own["RssFile"])
            peaks["worker_mib"] = max([peaks["worker_mib"], *(worker["RssAnon"] for worker in workers)])
            time.sleep(_SAMPLE_SECONDS)
        if process.returncode != 0:
            raise RuntimeError(f"preparing {num_rows} rows failed with exit code {process.returncode}")
        return {**json.loads(process.stdout.read()), **peaks}


def _children(pid: int) -> list[int]:
    """Return the processes that any thread of a process has started."""
    try:
        lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []
    return [int(child) for text in lists for child in text.split()]


def _memory_mib(pid: int) -> dict[str, float]:
    """Return a process's resident memory in MiB, zero if it has ended."""
    found = {"RssAnon": 0.0, "RssFile": 0.0}
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return found
    fields = dict(line.split(":", 1) for line in lines if line.startswith("Rss"))
    return found | {name: int(value.split()[0]) / 1024 for name, value in fields.items()}


def table(all_figures: Iterator[dict[str, Any]]) -> Iterator[str]:
    """Yield the figures as a Markdown table, a line for each number of rows."""
    yield (
        "| rows | time | own memory, peak | a worker's, peak | mapped files, peak | this process, CPU a row | of it "
        "counting | a worker, CPU a row |"
    )
    yield "|---:|---:|---:|---:|---:|---:|---:|---:|"
    for figures in all_figures:
        num_rows = figures["num_rows"]
        micro = {name: 1e6 * figures[f"{name}_seconds"] / num_rows for name in ("own", "count", "worker")}
        yield (
            f"| {num_rows:,} | {figures['seconds']:,.0f} s | {figures['own_mib']:,.0f} MiB "
            f"| {figures['worker_mib']:,.0f} MiB | {figures['own_mapped_mib']:,.0f} MiB | {micro['own']:.2f} us "
            f"| {micro['count']:.2f} us | {micro['worker']:.0f} us |"
        )


def main() -> None:
    """Measure each number of rows and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--processes", type=int, default=2, help="processes that encode")
    parser.add_argument("--stand-in", action="store_true", help="make up tokens instead of tokenising")
    parser.add_argument("--folder", type=Path, help="where the rows and the shards are written for the time being")
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.prepare is not None:
        prepare(arguments.prepare, num_processes=arguments.processes, is_stand_in=arguments.stand_in)
        return
    options = {"num_processes": arguments.processes, "is_stand_in": arguments.stand_in, "folder": arguments.folder}
    for line in table(measure(num_rows, **options) for num_rows in arguments.rows):
        print(line, flush=True)


if __name__ == "__main__":
    main()
