"""Time contestants side by side and print the result as Markdown: shared by the kernel benchmarks.

Contestants take turns within each repetition, so that a machine that slows down slows all of them. A contestant's
number is the median of its turns, on the host's clock or on the GPU's.
"""

from __future__ import annotations

import datetime
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """One way to do the work; `prepare` runs before every turn and is not timed."""

    name: str
    run: Callable[[], object]
    prepare: Callable[[], None] = lambda: None


def milliseconds_on_host(contestant: Contestant) -> float:
    """Prepare and run a contestant once; return its time on the host's clock."""
    contestant.prepare()
    started = time.perf_counter()
    contestant.run()
    return (time.perf_counter() - started) * 1e3


def milliseconds_on_gpu(contestant: Contestant) -> float:
    """Prepare and run a contestant once; return the time between its first and its last kernel on the GPU.

    The device is kept busy while the host issues the work: otherwise Python and autograd, some 0.1 ms a call, would
    count where a kernel takes 0.3 ms.
    """
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    contestant.prepare()
    torch.cuda._sleep(_BUSY_CYCLES)
    begin.record()
    contestant.run()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end)


_BUSY_CYCLES = 2_000_000
"""About 1 ms at the clocks of data-centre GPUs (1.4 to 2 GHz)."""


def interleaved_medians(
    contestants: Sequence[Contestant],
    *,
    repetitions: int,
    milliseconds_of: Callable[[Contestant], float] = milliseconds_on_host,
    failures: dict[str, str] | None = None,
) -> dict[str, float]:
    """Return each contestant's median time in milliseconds, after two turns of warming up.

    Args:
        contestants: They take turns.
        repetitions: Timed turns of each.
        milliseconds_of: Runs a contestant once.
        failures: Collects, by name, why a contestant failed; it is then left out. Without it the error is raised.
    """
    times: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for repetition in range(repetitions + 2):
        for contestant in contestants:
            if contestant.name not in times:
                continue
            try:
                milliseconds = milliseconds_of(contestant)
            except Exception as error:
                if failures is None:
                    raise
                failures[contestant.name] = f"{type(error).__name__}: {error}"
                del times[contestant.name]
                continue
            if repetition >= 2:
                times[contestant.name].append(milliseconds)
    return {name: statistics.median(values) for name, values in times.items()}


def table(title: str, medians: dict[str, float], *, rival: str) -> list[str]:
    """Return Markdown lines: each contestant's time, and how many times faster than the rival it is."""
    lines = [f"### {title}", "", "| contestant | ms | times the rival's speed |", "|---|---:|---:|"]
    lines += [f"| {name} | {value:.2f} | {medians[rival] / value:.2f} |" for name, value in medians.items()]
    return [*lines, ""]


def processor_name() -> str:
    """Return the processor's name and its widest vector instructions."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    name = next((line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")), "?")
    widest = next((flag for flag in ("avx512_bf16", "avx512f", "avx2", "asimd") if flag in text), "baseline")
    return f"{name} ({platform.machine()}, {widest})"


def heading(what: str, device: str, command: str) -> list[str]:
    """Return Markdown lines saying what was measured, where, with what, when and how to repeat it."""
    return [
        f"# {what}",
        "",
        (
            f"Device: {device}. torch {torch.__version__}, Python {platform.python_version()}. "
            f"Date: {datetime.datetime.now(tz=datetime.timezone.utc).date()}. Command: `{command}`."
        ),
        "Contestants take turns; numbers are medians.",
        "",
    ]
