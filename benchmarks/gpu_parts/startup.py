"""Report how long a 1B run from config takes until the end of its first step, phase by phase.

A phase ends where the run logs a line; phases under a tenth of a second are joined with the next one. The run is the
one of `step`, if that part has run in the same call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from benchmarks.gpu_parts.place import Place
from benchmarks.gpu_parts.profiled_run import FIRST_STEP_LINE
from benchmarks.gpu_parts.rows import Row, failed_row, without_folders
from benchmarks.gpu_parts.step import LOG_FILE, PLANS, train_profiled

TABLE = "Start of the run of the training step, from config"
_SHORTEST_SECONDS = 0.1
_TIME_AND_LEVEL = re.compile(r"^\d\d:\d\d:\d\d \w+ ")


def rows(place: Place) -> Iterator[Row]:
    """Yield the phases and their sum."""
    log = place.folder / LOG_FILE
    if not log.is_file():
        train_profiled(place, PLANS[place.size], place.folder / "startup_profile.json", name="startup")
    yield from rows_of_log(json.loads(log.read_text(encoding="utf-8")))


def rows_of_log(lines: Sequence[tuple[float, str]]) -> Iterator[Row]:
    """Yield a row a phase from (seconds since the start, line), until the end of the first step."""
    lines = [(seconds, line) for seconds, line in lines if _TIME_AND_LEVEL.match(line) or FIRST_STEP_LINE in line]
    end = next((i for i, (_, line) in enumerate(lines) if FIRST_STEP_LINE in line), None)
    previous = 0.0
    for seconds, line in lines if end is None else lines[: end + 1]:
        if seconds - previous < _SHORTEST_SECONDS and FIRST_STEP_LINE not in line:
            continue
        what = "the first step ended" if FIRST_STEP_LINE in line else _TIME_AND_LEVEL.sub("", line)
        name = f"until: {without_folders(what)[:100]}"
        yield Row(table=TABLE, name=name, values={"seconds": round(seconds - previous, 2)})
        previous = seconds
    if end is None:
        yield failed_row(TABLE, "from the command to the end of the first step", "no step ended")
        return
    total = {"seconds": round(lines[end][0], 2)}
    yield Row(table=TABLE, name="from the command to the end of the first step", values=total)
