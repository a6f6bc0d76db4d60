"""Say where a job's files lie: its log, the record of its starts, and the run it trains.

The one idea: they lie beside the runs, not in them, since a run's folder is made only once its data are sound, and
`--fresh` deletes it.
"""

from __future__ import annotations

import json
from pathlib import Path

from versatune_ds.config import RunConfig


def job_folder(config: RunConfig) -> Path:
    """Return the folder of job logs and records; no run can have its name."""
    return config.run.output_dir / "_slurm"


def log_pattern(config: RunConfig) -> str:
    """Return the job's log as sbatch takes it: %j is the job's id, %A_%a that of an array and its task."""
    folder = str(job_folder(config)).replace("%", "%%")
    return f"{folder}/{config.run.name}-{'%A_%a' if config.slurm.array else '%j'}.log"


def newest_step(run_dir: Path) -> int:
    """Return the step of the run's newest whole checkpoint, 0 without one."""
    latest = run_dir / "checkpoints" / "latest"
    return int(latest.read_text(encoding="utf-8").strip().removeprefix("step_")) if latest.is_file() else 0


def job_that_opened(run_dir: Path) -> str | None:
    """Return the id of the job that last opened the run's folder, None if none did."""
    record = run_dir / "environment.json"
    return json.loads(record.read_text(encoding="utf-8")).get("slurm_job_id") if record.is_file() else None
