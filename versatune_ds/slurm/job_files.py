"""Files of a Slurm job: its log, and the record of its starts.

They are beside the runs, not in them: a run's folder is made only once its data are checked, and `--fresh` deletes it.
"""

from __future__ import annotations

import json
from pathlib import Path

from versatune_ds.config import RunConfig
from versatune_ds.run_folder.names import ENVIRONMENT_FILE


def job_folder(config: RunConfig) -> Path:
    """Return the folder of job logs and records; no run can have its name."""
    return config.run.output_dir / "_slurm"


def log_pattern(config: RunConfig) -> str:
    """Return the path of the job's log for sbatch: %j is the job's id, %A_%a that of an array and its task."""
    folder = str(job_folder(config)).replace("%", "%%")
    return f"{folder}/{config.run.name}-{'%A_%a' if config.slurm.array else '%j'}.log"


def job_that_opened(run_dir: Path) -> str | None:
    """Return the id of the job that last opened the run's folder, None if none did."""
    record = run_dir / ENVIRONMENT_FILE
    return json.loads(record.read_text(encoding="utf-8")).get("slurm_job_id") if record.is_file() else None


class Starts:
    """The step from which each start of a job trained, so that a job without progress is not started for ever.

    A start that ends where it began may be bad luck, such as a preemption in its first minute. A second one in a row
    means that the job would take nodes for nothing.

    Args:
        path: One step a line, in a file that outlives the job's nodes; made at the first start.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, step: int) -> None:
        """Record a start after `step` steps."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(f"{step}\n")

    def steps(self) -> list[int]:
        """Return the step of every start, oldest first."""
        return [int(line) for line in self.path.read_text().split()] if self.path.is_file() else []

    def are_stuck_at(self, step: int) -> bool:
        """Return whether the last two starts began at `step`, where the run still is."""
        return self.steps()[-2:] == [step, step]
