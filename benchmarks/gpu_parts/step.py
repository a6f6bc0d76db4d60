"""Train a 1B model for a few steps: tokens/s, share of the peak, memory, and the time of each kind of kernel.

One run gives all of it: some steps to warm up, the timed ones, whose numbers the run's own metrics record, and two
profiled ones after them. The run is stopped then.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.gpu_parts.kernel_kinds import kind_of, largest, milliseconds_by_kind
from benchmarks.gpu_parts.place import Place, device_name, num_llama_parameters, share_of_peak
from benchmarks.gpu_parts.product_run import CommandResult, large_recipe, run_command, step_records, write_recipe
from benchmarks.gpu_parts.profiled_run import PROFILE_LINE
from benchmarks.gpu_parts.rows import Row, Value, failed_row

TABLE = "Training step"
KINDS_TABLE = "Training step: milliseconds of a step on the device, by kind of kernel"
LOG_FILE, SPEED_FILE = "step_log.json", "step_speed.json"
"""In the shared folder: the log with times, which `startup` reads, and tokens/s, beside which `trl` is put."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Steps of a run: `log_every` to warm up, then timed ones until `last_timed`, then two that are profiled."""

    log_every: int
    last_timed: int

    @property
    def profiled(self) -> tuple[int, int]:
        """Return the first and the last profiled step."""
        return self.last_timed + 1, self.last_timed + 2


PLANS = {"full": Plan(log_every=4, last_timed=16), "small": Plan(log_every=2, last_timed=4)}


def rows(place: Place) -> Iterator[Row]:
    """Yield the speed, then the kinds of kernels."""
    plan, profile = PLANS[place.size], place.folder / "profile.json"
    ended = train_profiled(place, plan, profile, name="step")
    records = [r for r in step_records(place.folder / "runs" / "step") if plan.log_every < r["step"] <= plan.last_timed]
    if not records:
        yield failed_row(TABLE, "versatune_ds", ended.reason())
        return
    speed = speed_of(records, place)
    (place.folder / SPEED_FILE).write_text(json.dumps(speed), encoding="utf-8")
    yield Row(table=TABLE, name=f"versatune_ds, {place.llama_name}", values=speed)
    if not profile.is_file():
        yield failed_row(KINDS_TABLE, "profile", ended.reason())
        return
    yield from rows_of_profile(json.loads(profile.read_text()), step_milliseconds=float(speed["step ms"] or 0.0))


def train_profiled(place: Place, plan: Plan, profile: Path, *, name: str) -> CommandResult:
    """Train until the profile is written, and keep the log with its times."""
    recipe = write_recipe(place.folder / f"{name}.yaml", large_recipe(place, name=name))
    first, last = plan.profiled
    module = ["-m", "benchmarks.gpu_parts.profiled_run"]
    ended = run_command(
        [*module, profile, str(first), str(last), recipe, "--fresh", f"monitor.log_every={plan.log_every}"],
        seconds=place.seconds_left(),
        is_done=lambda so_far: any(PROFILE_LINE in line for _, line in so_far.lines),
    )
    (place.folder / LOG_FILE).write_text(json.dumps(ended.lines), encoding="utf-8")
    return ended


def speed_of(records: list[dict[str, Any]], place: Place) -> dict[str, Value]:
    """Return the numbers of the timed steps; each record covers the steps since the one before."""
    seconds = sum(record["perf/step_seconds"] for record in records)
    tokens_per_second = sum(r["perf/tokens_per_second"] * r["perf/step_seconds"] for r in records) / seconds
    name = device_name(place.device)
    return {
        "tokens/s": round(tokens_per_second),
        "share of the peak (6N)": share_of_peak(tokens_per_second, shape=place.llama, device_name=name),
        "step ms": round(1e3 * mean(record["perf/step_seconds"] for record in records), 1),
        "waiting for data ms": round(1e3 * mean(record["perf/data_seconds"] for record in records), 2),
        "peak GiB": round(records[-1]["perf/memory_gib"], 2),
        "M parameters": round(num_llama_parameters(place.llama) / 1e6, 1),
    }


def rows_of_profile(milliseconds: dict[str, float], *, step_milliseconds: float) -> Iterator[Row]:
    """Yield a row a kind with its share of all kernels, and their sum beside the time of an unprofiled step."""
    total = sum(milliseconds.values())
    for kind, value in milliseconds_by_kind(milliseconds).items():
        of_kind = {name: ms for name, ms in milliseconds.items() if kind_of(name) == kind}
        values = {
            "ms": round(value, 3),
            "share": round(value / total, 4) if total else None,
            "largest": largest(of_kind),
        }
        yield Row(table=KINDS_TABLE, name=kind, values=values)
    yield Row(
        table=KINDS_TABLE,
        name="all kernels",
        values={"ms": round(total, 3), "share": 1.0, "largest": f"a timed step takes {step_milliseconds} ms"},
    )
