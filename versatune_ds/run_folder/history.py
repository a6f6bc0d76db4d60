"""Keep what a run was told at which step: its settings now, and those of its earlier parts.

The one idea: `config.yaml` is in force now; `config_until_step_00000005.yaml` made the decisions up to step 5. A run
that goes on from an earlier step than it had reached forgets what was decided after it, and those settings too.
"""

from __future__ import annotations

import re
from pathlib import Path

from versatune_ds.run_folder.checkpoint_files import write_durably


def take_over(path: Path, text: str, *, step: int) -> None:
    """Write a file that is in force after a step, and keep what was in force before if it differs.

    A kill between the lines leaves files from which the same call gives the same result.

    Args:
        path: The file, such as config.yaml.
        text: Its new content.
        step: Optimizer steps done; below 1 the run begins and there is no past.
    """
    later = [(until, former) for until, former in former_files(path) if until > step or step < 1]
    in_force = later[0][1] if later else path
    former = path.with_name(f"{path.stem}_until_step_{step:08d}{path.suffix}")
    is_decided_by_it = step >= 1 and in_force.is_file() and not former.is_file()  # otherwise nothing before this step
    if is_decided_by_it and in_force.read_text(encoding="utf-8") != text:
        _replace(former, in_force.read_text(encoding="utf-8"))
    _replace(path, text)
    for _, former in later:
        former.unlink()


def former_files(path: Path) -> list[tuple[int, Path]]:
    """Return (last step, file) of what was in force before, oldest first."""
    pattern = re.compile(re.escape(path.stem) + r"_until_step_(\d+)" + re.escape(path.suffix))
    matches = ((pattern.fullmatch(other.name), other) for other in path.parent.glob(f"{path.stem}_until_step_*"))
    return sorted((int(match[1]), other) for match, other in matches if match)


def file_at(path: Path, *, step: float) -> Path:
    """Return the file that was in force when the decision after a step was made."""
    return next((former for until, former in former_files(path) if until >= step), path)


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    write_durably(partial, text)
    partial.replace(path)
