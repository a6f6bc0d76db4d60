"""Train the quickstart in every way that needs a GPU to be believed: precisions, ZeRO stages, LoRA, compile, offload.

The cells run side by side, each as a process of its own; a cell is ok if its run is complete. The last one is killed
without warning and resumed: its losses and decisions must equal those of the uninterrupted run to the last bit.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from benchmarks.gpu_parts.place import ROOT, Place
from benchmarks.gpu_parts.product_run import (
    QUICKSTART,
    CommandResult,
    precision_of,
    records_of,
    run_command,
    step_records,
)
from benchmarks.gpu_parts.rows import Row, attempt, failed_row

TABLE = "Functions: the quickstart on this device"
CELLS = {
    "kill and resume": (),
    "fp16": ("train.precision=fp16",),
    "LoRA": ("model.lora={rank: 8}",),
    "LoRA under ZeRO-3": ("model.lora={rank: 8}", "train.deepspeed=ds_configs/zero3.json"),
    "compile": ("model.compile=true",),
    "offload of the optimizer": ("train.deepspeed=ds_configs/zero2_offload.json", "train.optimizer=deepspeed_adam"),
    "ZeRO-1": ("train.deepspeed=ds_configs/zero1.json",),
    "ZeRO-2": ("train.deepspeed=ds_configs/zero2.json",),
    "ZeRO-3": ("train.deepspeed=ds_configs/zero3.json",),
    "gradient checkpointing": ("model.gradient_checkpointing=true",),
}
"""Name of a cell to the recipe keys that it changes."""
SMALL_CELLS = ("kill and resume",)


def rows(place: Place) -> Iterator[Row]:
    """Yield a row a cell, as they end."""
    cells = SMALL_CELLS if place.is_small else tuple(CELLS)
    num_workers = 1 if place.is_small else max(1, min(5, (os.cpu_count() or 1) // 3))
    if num_workers > 1:
        _prepare(place)
    with ThreadPoolExecutor(num_workers) as pool:
        cell_of = {pool.submit(_row, place, name): name for name in cells}
        for done in as_completed(cell_of):
            yield done.result()


def _prepare(place: Place) -> None:
    """Make the data once, or the cells would wait for one another."""
    words = ["-m", "versatune_ds.cli", "prepare", QUICKSTART, *_keys(place, "prepare")]
    run_command(words, seconds=place.seconds_left())


def _keys(place: Place, name: str) -> list[str]:
    """Return the keys of every cell: a short quickstart, in a folder of its own."""
    steps, every = (8, 3) if place.is_small else (60, 20)
    sizes = ["data.synthetic.num_rows=200", "train.rows_per_batch=4", "train.rows_per_micro_batch=2"]
    return [
        f"run.output_dir={place.folder / 'matrix'}", f"run.name={name.replace(' ', '_')}", f"train.steps={steps}",
        f"data.cache_dir={place.folder / 'matrix_cache'}", f"checkpoint.every={every}", "monitor.log_every=1",
        f"mixture.update_every={every}", "validation.max_examples_per_domain=20",
        f"train.precision={precision_of(place)}", *(sizes if place.is_small else []),
    ]  # fmt: skip


def _row(place: Place, name: str) -> Row:
    if name == "kill and resume":
        return attempt(TABLE, name, lambda: _kill_and_resume(place))
    ended = _train(place, name, CELLS[name])
    records = step_records(place.folder / "matrix" / name.replace(" ", "_"))
    if ended.code != 0 or not records:
        return failed_row(TABLE, name, ended.reason())
    last = records[-1]
    memory = round(last["perf/memory_gib"], 3)
    values = {"result": "ok", "last loss": round(last["train/loss"], 4), "peak GiB": memory}
    return Row(table=TABLE, name=name, values=values | {"seconds": round(ended.seconds, 1)})


def _train(place: Place, name: str, changes: tuple[str, ...], *, kill_after: int | None = None) -> CommandResult:
    """Train a cell to its end, or kill it once it has recorded a step."""
    run_dir = place.folder / "matrix" / name.replace(" ", "_")

    def is_done(_: CommandResult) -> bool:
        return kill_after is not None and any(record["step"] >= kill_after for record in step_records(run_dir))

    words = [ROOT / "launcher" / "train.py", QUICKSTART, *_keys(place, name), *changes]
    return run_command(words, seconds=place.seconds_left(), is_done=is_done)


def _kill_and_resume(place: Place) -> dict[str, str | int | float]:
    """Return how the killed and resumed run compares with the uninterrupted one.

    Raises:
        RuntimeError: If one did not end, the kill came too late, or a number differs.
    """
    kill_after = 5 if place.is_small else 25
    whole = _train(place, "whole", ())
    killed = _train(place, "killed", (), kill_after=kill_after)
    resumed = _train(place, "killed", ())
    if killed.code is not None:
        raise RuntimeError(f"the run that was to be killed ended by itself: {killed.reason()}")
    for ended in (whole, resumed):
        if ended.code != 0:
            raise RuntimeError(ended.reason())
    folders = [place.folder / "matrix" / name for name in ("whole", "killed")]
    steps = compare_runs(*folders)
    resumed_from = records_of(folders[1] / "resumes.jsonl")
    return {
        "result": f"ok: {steps} losses and all decisions equal to the last bit",
        "last loss": round(step_records(folders[0])[-1]["train/loss"], 4),
        "seconds": round(whole.seconds + killed.seconds + resumed.seconds, 1),
        "resumes": len(resumed_from),
    }


def compare_runs(whole: Path, killed: Path) -> int:
    """Return the number of steps of two runs whose losses and decisions are the same.

    Raises:
        RuntimeError: If they are not, with the first step or decision that differs.
    """
    losses = [{record["step"]: record["train/loss"] for record in step_records(run_dir)} for run_dir in (whole, killed)]
    for step, loss in losses[0].items():
        if losses[1].get(step) != loss:
            raise RuntimeError(f"step {step}: a loss of {loss} uninterrupted, {losses[1].get(step)} resumed")
    weights = [[r["weights_after"] for r in records_of(run_dir / "decisions.jsonl")] for run_dir in (whole, killed)]
    if not losses[0] or not weights[0] or weights[0] != weights[1]:
        raise RuntimeError("the decisions differ, or there are none to compare")
    return len(losses[0])
