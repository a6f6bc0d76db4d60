"""Record how long each stage of a starting point took, for the table of what a comparison cost."""

from __future__ import annotations

import json
from pathlib import Path

from versatune_ds.run_folder.json_lines import json_lines

STAGES_FILE = "stages.jsonl"
"""In the folder of the starting point: one stage's command and seconds a line."""


def record_stage(folder: Path, command: str, *, seconds: float) -> None:
    """Add how long a command took, whether it failed or not; one that was killed leaves no line."""
    with (folder / STAGES_FILE).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"command": command, "seconds": round(seconds, 3)}) + "\n")


def seconds_by_stage(folder: Path) -> dict[str, float]:
    """Return the seconds of each command, attempts that failed included; empty for an earlier starting point."""
    seconds: dict[str, float] = {}
    for line in json_lines(folder / STAGES_FILE):
        if line.value is not None:
            command = line.value["command"]
            seconds[command] = seconds.get(command, 0.0) + line.value["seconds"]
    return seconds
