"""Keep the settings of a run's earlier parts beside the current ones.

`config.yaml` is the current one; `config_until_step_00000005.yaml` made the decisions up to step 5. A run that resumes
from an earlier step than it had reached drops the decisions after that step, and their settings too.
"""

from __future__ import annotations

import re
from pathlib import Path

from versatune_ds.run_folder.atomic import write_text


def write_version(path: Path, text: str, *, step: int) -> None:
    """Write a file that applies after a step, and keep the version that applied before if it differs.

    A kill between the lines leaves files from which the same call gives the same result.

    Args:
        path: The file, such as config.yaml.
        text: Its new content.
        step: Optimizer steps done; below 1 the run begins and there is no past.
    """
    # A resume from an earlier step: the version that applied at that step is the first one that outlasted it.
    later = [(until, former) for until, former in former_versions(path) if until > step or step < 1]
    in_force = later[0][1] if later else path
    former = path.with_name(f"{path.stem}_until_step_{step:08d}{path.suffix}")
    has_made_decisions = step >= 1 and in_force.is_file() and not former.is_file()
    if has_made_decisions and in_force.read_text(encoding="utf-8") != text:
        write_text(former, in_force.read_text(encoding="utf-8"))
    write_text(path, text)
    for _, former in later:
        former.unlink()


def former_versions(path: Path) -> list[tuple[int, Path]]:
    """Return (last step, file) of the earlier versions, oldest first."""
    pattern = re.compile(re.escape(path.stem) + r"_until_step_(\d+)" + re.escape(path.suffix))
    matches = ((pattern.fullmatch(other.name), other) for other in path.parent.glob(f"{path.stem}_until_step_*"))
    return sorted((int(match[1]), other) for match, other in matches if match)


def version_at(path: Path, *, step: float) -> Path:
    """Return the version that applied when the decision after a step was made."""
    return next((former for until, former in former_versions(path) if until >= step), path)
