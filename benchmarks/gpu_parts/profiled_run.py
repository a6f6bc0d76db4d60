"""Run one process of the product's training, and profile some of its steps: the only place that reaches inside.

    python -m benchmarks.gpu_parts.profiled_run PROFILE.json FIRST LAST RECIPE [key=value ...]

It counts optimizer steps where DeepSpeed's engine ends them, prints a line at the end of the first one, profiles steps
FIRST to LAST, writes the milliseconds of every kernel into PROFILE.json and prints a line. The run continues; its
caller stops it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

FIRST_STEP_LINE, PROFILE_LINE = "on_gpu: first step ended", "on_gpu: profile written"


def watch_steps(engine_class: Any, *, on_end: Callable[[int], None]) -> None:
    """Call `on_end` with the number of each optimizer step that an engine of this class ends."""
    inner = engine_class.step

    def step(engine: Any, *arguments: Any, **keywords: Any) -> Any:
        before = engine.global_steps
        result = inner(engine, *arguments, **keywords)
        if engine.global_steps > before:
            on_end(engine.global_steps)
        return result

    engine_class.step = step


class StepProfile:
    """Profile the steps `first` to `last` and write what their kernels took."""

    def __init__(self, path: Path, *, first: int, last: int) -> None:
        self._path, self._first, self._last = path, first, last
        self._profiler: Any = None

    def end_of_step(self, step: int) -> None:
        """Start the profiler before the first step and stop it after the last."""
        import torch

        is_cuda = torch.cuda.is_available()
        if is_cuda and step in (1, self._first - 1, self._last):
            torch.cuda.synchronize()
        if step == 1:
            print(FIRST_STEP_LINE, file=sys.stderr, flush=True)
        if step == self._first - 1:
            from torch.profiler import ProfilerActivity, profile

            self._profiler = profile(activities=[ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU])
            self._profiler.start()
        if step == self._last:
            self._profiler.stop()
            self._write(kernel_milliseconds(self._profiler, is_cuda=is_cuda, folder=self._path.parent))

    def _write(self, milliseconds: dict[str, float]) -> None:
        num_steps = self._last - self._first + 1
        a_step = {name: value / num_steps for name, value in milliseconds.items()}
        self._path.write_text(json.dumps(a_step), encoding="utf-8")
        print(PROFILE_LINE, file=sys.stderr, flush=True)


def kernel_milliseconds(profiler: Any, *, is_cuda: bool, folder: Path) -> dict[str, float]:
    """Return the milliseconds of each kernel by name; on a CPU, where there are none, of each operator by itself."""
    if not is_cuda:
        return {event.key: event.self_cpu_time_total / 1e3 for event in profiler.key_averages()}
    trace = folder / "trace.json"
    profiler.export_chrome_trace(str(trace))
    return milliseconds_in_trace(json.loads(trace.read_text(encoding="utf-8")))


def milliseconds_in_trace(trace: dict[str, Any]) -> dict[str, float]:
    """Return the milliseconds of each kernel, copy and fill in a trace; ranges of annotations do not count."""
    found: dict[str, float] = {}
    for event in trace["traceEvents"]:
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            found[event["name"]] = found.get(event["name"], 0.0) + event["dur"] / 1e3
    return found


def main() -> int:
    """Train as launcher/train.py does, with the steps watched."""
    path, first, last, *words = sys.argv[1:]
    from deepspeed.runtime.engine import DeepSpeedEngine

    from versatune_ds.cli import main as versatune

    profile = StepProfile(Path(path), first=int(first), last=int(last))
    watch_steps(DeepSpeedEngine, on_end=profile.end_of_step)
    return versatune(["worker", *words])


if __name__ == "__main__":
    sys.exit(main())
