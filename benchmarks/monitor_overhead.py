"""Measure the cost of monitoring by sink: main-thread time and all CPU time a logged step, against a step's length.

    python benchmarks/monitor_overhead.py --step-seconds 0.25

A step waits for the main thread's time only; all CPU time includes the sinks' own threads (W&B's service process is
not counted), which compete for the interpreter's lock.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console

from versatune_ds.config.load import parse_config
from versatune_ds.monitor.live import LiveTerminal
from versatune_ds.monitor.sinks import Background, Monitor, Sink
from versatune_ds.monitor.tensorboard_sink import TensorBoard
from versatune_ds.monitor.wandb_sink import Wandb
from versatune_ds.run_folder.json_lines import JsonLines

NUM_DOMAINS = 6
STEPS_PER_DECISION = 5


def main() -> None:
    """Print one line a sink."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logged-steps", type=int, default=40)
    parser.add_argument("--log-every", type=int, default=10, help="optimizer steps between logged ones")
    parser.add_argument("--step-seconds", type=float, default=0.25, help="length of an optimizer step to compare with")
    parser.add_argument("--pause-seconds", type=float, default=0.26, help="between logged steps: the view draws")
    chosen = parser.parse_args()
    versions = {name: metadata.version(name) for name in ("torch", "wandb", "tensorboard", "rich")}
    sys.stdout.write(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, {versions}\n")
    sys.stdout.write(f"{'sink':<12} {'main ms':>8} {'all CPU ms':>11} {'main share':>11} {'CPU share':>10}\n")
    for name, make in SINKS.items():
        main_ms, cpu_ms = measure(make, num_logged=chosen.logged_steps, pause_seconds=chosen.pause_seconds)
        interval_ms = 1000 * chosen.step_seconds * chosen.log_every
        shares = f"{main_ms / interval_ms:11.4%} {cpu_ms / interval_ms:10.4%}"
        sys.stdout.write(f"{name:<12} {main_ms:8.3f} {cpu_ms:11.3f} {shares}\n")


def measure(make: Callable[[Path], Sink], *, num_logged: int, pause_seconds: float) -> tuple[float, float]:
    """Return the median main-thread milliseconds and the mean CPU milliseconds of one logged step."""
    with tempfile.TemporaryDirectory() as folder:
        monitor = Monitor([make(Path(folder))])
        waits, cpu_before = [], time.process_time()
        for step in range(1, num_logged + 1):
            values = step_metrics(step)
            started = time.perf_counter()
            monitor.metrics(step, values)
            if step % STEPS_PER_DECISION == 0:
                monitor.decision(decision(step))
            waits.append(1000 * (time.perf_counter() - started))
            time.sleep(pause_seconds)
        cpu = 1000 * (time.process_time() - cpu_before) / num_logged
        monitor.finish(exit_code=0)
    return statistics.median(waits), cpu


def step_metrics(step: int) -> dict[str, float]:
    """Return as many metrics as a run of six domains records."""
    names = ("loss", "grad_norm", "learning_rate")
    perf = ("tokens_per_second", "step_seconds", "data_seconds", "memory_gib", "tflops_per_process")
    domain = ("train_loss", "weight", "num_tokens", "requested_share", "realised_share", "epochs")
    values = {f"train/{name}": 1.0 / step for name in names} | {f"perf/{name}": 1.0 + step for name in perf}
    return values | {f"domain/d{i}/{name}": 1.0 / (step + i) for i in range(NUM_DOMAINS) for name in domain}


def decision(step: int) -> dict[str, Any]:
    """Return a decision as the controller's `to_dict`."""
    names = [f"d{i}" for i in range(NUM_DOMAINS)]
    signals = ("learnable_potential", "forgetting_degree", "forgetting_from_best", "forgetting_from_start")
    return {
        "update": step,
        "decided_at_step": step,
        "effective_step": step + 3,
        "losses": {name: {"mean": 2.0 / step, "stderr": 0.01, "num_loss_tokens": 999} for name in names},
        "signals": {name: {**dict.fromkeys(signals, 0.1), "reference_loss": 1.0} for name in names},
        "weights_before": dict.fromkeys(names, 1 / NUM_DOMAINS),
        "weights_after": dict.fromkeys(names, 1 / NUM_DOMAINS),
        "acted": [],
        "reason": "d0 has most left to learn",
    }


def _wandb(folder: Path) -> Sink:
    """Return W&B, offline, in its thread."""
    config = parse_config(json.loads(RECIPE) | {"run": {"name": "r", "output_dir": str(folder)}})
    config.run_dir.mkdir(parents=True)
    return Background(Wandb(config, resumed_step=-1), name="W&B", patience_seconds=60, way_out="")


def _live(folder: Path) -> Sink:
    """Return the live view, drawn on a terminal whose output is discarded."""
    console = Console(file=io.StringIO(), width=80, height=24, force_terminal=True)
    return LiveTerminal(name="r", num_steps=1000, step=0, console=console)


RECIPE = json.dumps(
    {
        "model": {"from_config": {"model_type": "llama"}},
        "data": {"synthetic": {}},
        "train": {"steps": 1000},
        "mixture": {},
        "monitor": {"wandb": {"mode": "offline"}},
    }
)
SINKS: dict[str, Callable[[Path], Sink]] = {
    "files": lambda folder: JsonLines(folder, resumed_step=-1),
    "live view": _live,
    "W&B offline": _wandb,
    "TensorBoard": lambda folder: Background(
        TensorBoard(folder, resumed_step=-1), name="TensorBoard", patience_seconds=60, way_out=""
    ),
}

if __name__ == "__main__":
    main()
