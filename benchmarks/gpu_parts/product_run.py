"""Run the product's own commands and read what a run's folder records.

A run is one process, started as launchers start it (`launcher/train.py`). Its log lines get the time at which they
came, so that a slow start shows where its seconds went.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu_parts.place import ROOT, Place

QUICKSTART = ROOT / "recipes" / "quickstart.yaml"
_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
_POLL_SECONDS = 0.05
ROWS_PER_BATCH, ROWS_PER_MICRO_BATCH = 8, 2


@dataclass(slots=True, kw_only=True)
class CommandResult:
    """What a command printed, and how it ended.

    Attributes:
        seconds: From its start to its end.
        lines: (seconds since the start, line) of everything it printed.
        code: Exit code; None if it was stopped here.
        is_late: Whether it was stopped because its time was up.
    """

    seconds: float = 0.0
    lines: list[tuple[float, str]] = field(default_factory=list)
    code: int | None = None
    is_late: bool = False

    def reason(self) -> str:
        """Return in one line why the command failed: its last line, which names the error."""
        last = next((line for _, line in reversed(self.lines) if line.strip()), "no output")
        return f"stopped at its limit; last line: {last}" if self.is_late else f"exit code {self.code}: {last}"


def run_command(
    words: Sequence[str | Path],
    *,
    seconds: float,
    is_done: Callable[[CommandResult], bool] | None = None,
) -> CommandResult:
    """Run a Python script or module until its end, until `is_done`, or until its time is up; it is killed then.

    Args:
        words: Arguments of the interpreter.
        seconds: Limit.
        is_done: Asked 20 times a second whether what was to be seen was seen; a run is killed then as a machine that
            fails would kill it.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    variables = {**os.environ, **_ENVIRONMENT, "PYTHONPATH": path}
    ended, started = CommandResult(), time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *map(str, words)], cwd=ROOT, env=variables, stdin=subprocess.DEVNULL, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace",
    )  # fmt: skip

    def read() -> None:
        for line in process.stdout:
            ended.lines.append((time.monotonic() - started, line.rstrip("\n")))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    while process.poll() is None:
        is_over, ended.is_late = is_done is not None and is_done(ended), time.monotonic() - started > seconds
        if is_over or ended.is_late:
            process.kill()
            process.wait()
            break
        time.sleep(_POLL_SECONDS)
    else:
        ended.code = process.returncode
    reader.join(timeout=2.0)
    ended.seconds = time.monotonic() - started
    return ended


def write_recipe(path: Path, content: Mapping[str, Any]) -> Path:
    """Write a recipe as JSON, which is YAML too."""
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def large_recipe(place: Place, *, name: str) -> dict[str, Any]:
    """Return the recipe of the timed runs: a 1B Llama from config on the built-in corpus, ZeRO-2.

    Model, attention and optimizer are the product's defaults, so that a better default shows in the numbers.
    """
    num_rows, row_tokens, tokenizer_tokens = (200, 128, 600) if place.is_small else (2000, 4096, 4096)
    return {
        "run": {"name": name, "output_dir": str(place.folder / "runs")},
        "model": {
            "from_config": dict(place.llama), "tokenizer_vocab_size": tokenizer_tokens,
        },
        "data": {
            "synthetic": {"num_rows": num_rows, "num_valid_rows": 20, "num_test_rows": 1}, "row_tokens": row_tokens,
            "cache_dir": str(place.folder / "cache"),
        },
        "train": {
            "steps": 200, "rows_per_batch": ROWS_PER_BATCH, "rows_per_micro_batch": ROWS_PER_MICRO_BATCH,
            "learning_rate": 1e-4, "precision": precision_of(place), "deepspeed": str(ROOT / "ds_configs/zero2.json"),
        },
        "mixture": {"prior": "proportional", "reference": {"start_fraction": 0.5}, "update_every": 100},
        "validation": {"max_examples_per_domain": 20},
        "monitor": {"log_every": 2 if place.is_small else 4},
    }  # fmt: skip


def precision_of(place: Place) -> str:
    """Return bf16 on a GPU and fp32 on a CPU, which is slow in bf16."""
    return "bf16" if place.device == "cuda" else "fp32"


def records_of(path: Path) -> list[dict[str, Any]]:
    """Return the complete records of a file of JSON lines; none where it does not exist yet."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def step_records(run_dir: Path) -> list[dict[str, Any]]:
    """Return the records of a run's metrics that are about optimizer steps."""
    return [record for record in records_of(run_dir / "metrics.jsonl") if "train/loss" in record]
