"""Remember from which step a job started each time, so that one which no longer moves does not start for ever.

The one idea: a start that ends where it began may be bad luck, a preemption in its first minute; a second one in a
row is a job that would take nodes for nothing.
"""

from __future__ import annotations

from pathlib import Path


class Starts:
    """Keep the steps at which a job started, one a line, in a file that outlives the job's nodes.

    Args:
        path: The file; made at the first start.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, step: int) -> None:
        """Note a start after `step` steps."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(f"{step}\n")

    def steps(self) -> list[int]:
        """Return the step of every start so far, oldest first."""
        return [int(line) for line in self.path.read_text().split()] if self.path.is_file() else []

    def are_stuck_at(self, step: int) -> bool:
        """Return whether the last two starts began at `step`, where the run still stands."""
        return self.steps()[-2:] == [step, step]
