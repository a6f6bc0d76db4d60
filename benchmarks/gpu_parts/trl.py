"""Train the model of `step` with TRL's SFTTrainer, with and without Liger: same rows, precision, ZeRO stage, batch.

Each is a process of its own, `benchmarks/trl_one_trainer.py`. With `step` in the same call, our tokens/s are put beside
TRL's.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu_parts.place import ROOT, Place, device_name, share_of_peak
from benchmarks.gpu_parts.product_run import CommandResult, large_recipe, run_command
from benchmarks.gpu_parts.rows import Row, Value, failed_row
from benchmarks.gpu_parts.step import SPEED_FILE

TABLE = "Training: TRL's SFTTrainer with the model and rows of the step above"
TRAINERS = {"trl_liger": "TRL with Liger", "trl": "TRL"}
"""The faster rival comes first, in case time is up."""


def rows(place: Place) -> Iterator[Row]:
    """Yield a row a trainer."""
    if importlib.util.find_spec("trl") is None:  # found out here in no time, not in a process of its own
        yield from (failed_row(TABLE, name, "trl is not installed") for name in TRAINERS.values())
        return
    recipe = large_recipe(place, name="trl")
    settings = {"recipe": recipe, "steps": 6 if place.is_small else 14, "workspace": str(place.folder)}
    for number, (trainer, name) in enumerate(TRAINERS.items()):
        output = place.folder / f"{trainer}.json"
        words = [ROOT / "benchmarks" / "trl_one_trainer.py", trainer, json.dumps(settings), output]
        ended = run_command(words, seconds=place.seconds_left() / (len(TRAINERS) - number))
        yield row_of_output(place, name, output, ended)


def row_of_output(place: Place, name: str, output: Path, ended: CommandResult) -> Row:
    """Return the row of what a trainer's process left: its result, or why there is none."""
    if not output.is_file():
        return failed_row(TABLE, name, ended.reason())
    measured, device = json.loads(output.read_text(encoding="utf-8")), device_name(place.device)
    speed, peak_gib = measured["tokens_per_second"], measured["peak_gib_on_gpu"]
    values: dict[str, Value] = {
        "tokens/s": round(speed),
        "share of the peak (6N)": share_of_peak(speed, shape=place.llama, device_name=device),
        "peak GiB": round(peak_gib if peak_gib is not None else measured["peak_mib"] / 1024, 2),
    }
    ours = place.folder / SPEED_FILE
    if ours.is_file():
        values["ours / this, tokens/s"] = round(json.loads(ours.read_text(encoding="utf-8"))["tokens/s"] / speed, 3)
    return Row(table=TABLE, name=name, values=values)
