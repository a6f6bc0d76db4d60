"""Make what all runs of a comparison start from: base model, detected mixture, references; once, and kept.

The one idea: every stage is one `versatune` command that a user could run alone; it is logged, runs as a process of its
own, and is left out when what it makes is there.
"""

from __future__ import annotations

import json
import logging
import shlex
import subprocess
import sys
from pathlib import Path

from versatune_ds.comparison.plan import ComparisonPlan, texts
from versatune_ds.config import load_config

logger = logging.getLogger(__name__)

_SETTINGS_FILE = "base_settings.json"


def make_starting_point(plan: ComparisonPlan, *, num_processes: int) -> list[str]:
    """Make base model, prior and references where they are not there yet.

    Args:
        plan: The comparison.
        num_processes: Processes of each stage.

    Returns:
        `key=value` texts that let a run start from them.

    Raises:
        ValueError: If the base model that is there was asked for with other keys.
        RuntimeError: If a stage fails; the message names its log.
    """
    folder = plan.folder
    folder.mkdir(parents=True, exist_ok=True)
    check_base(plan)
    stages = _Stages(folder, num_processes=num_processes)
    model = folder / "base_model"
    place = texts({"run.name": "base", "run.output_dir": str(folder)})
    if not _is_exported(model):
        stages.run("train", plan.base.recipe, *texts(plan.base.set), *place)
        stages.run("export", folder / "base", "--output", model, is_parallel=False)
    start = texts({"model.name_or_path": str(model), "model.from_config": None})
    shared = [*texts(plan.set), *texts({"run.name": "start", "run.output_dir": str(folder)})]
    for is_wanted, command, key in ((plan.detect, "detect", "prior"), (plan.reference, "reference", "reference")):
        if is_wanted:
            file = folder / f"{key}.json"
            if not file.is_file():
                stages.run(command, plan.recipe, *shared, *start, "--output", file)
            start += texts({f"mixture.{key}": str(file)})
    return start


def check_base(plan: ComparisonPlan) -> None:
    """Keep what the base model is asked for, at the first call, and compare with it at later ones.

    Raises:
        ValueError: If it differs: runs on two base models must not meet in one table.
    """
    settings = load_config(plan.base.recipe, texts(plan.base.set)).model_dump(mode="json")
    path = plan.folder / _SETTINGS_FILE
    if not path.is_file():
        path.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    elif json.loads(path.read_text(encoding="utf-8")) != settings:
        raise ValueError(
            f"base: its recipe is not the one that the base model in {plan.folder} was made with ({path.name}); give "
            "it back, remove that folder, or give the comparison another name"
        )


def _is_exported(model: Path) -> bool:
    """Return whether the base model was exported whole: the tokenizer is written last."""
    return (model / "tokenizer_config.json").is_file()


class _Stages:
    """Run `versatune` commands one after the other, each with a log in the comparison's folder."""

    def __init__(self, folder: Path, *, num_processes: int) -> None:
        self._folder = folder
        self._num_processes = num_processes

    def run(self, command: str, *arguments: object, is_parallel: bool = True) -> None:
        """Run a command; raise RuntimeError with the end of its log when it fails."""
        parts = [command, *map(str, arguments)]
        if is_parallel:
            parts += ["--processes", str(self._num_processes)]
        logger.info("versatune %s", shlex.join(parts))
        log = self._folder / f"{command}.log"
        whole = [sys.executable, "-m", "versatune_ds.cli", *parts]
        with log.open("ab") as stream:
            result = subprocess.run(whole, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL)
        if result.returncode:
            written = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
            end = written[-1] if written else "it wrote nothing"
            raise RuntimeError(f"versatune {command} failed ({result.returncode}); {log} ends: {end}")
