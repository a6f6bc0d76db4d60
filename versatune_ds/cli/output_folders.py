"""Check that a command can write where it will, before libraries are imported or processes started.

Nothing is checked where the processes run on other machines, whose disks this one may not have.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from versatune_ds.config import RunConfig
from versatune_ds.run_folder.names import CHECKPOINTS_FOLDER, CONFIG_FILE, EXPORT_FOLDER
from versatune_ds.run_folder.recorded_config import is_run
from versatune_ds.run_folder.writable_folders import check_writable

Place = tuple[str, Path]
"""The recipe key or option that names a folder, and the folder."""


def check_output_folders(parsed: argparse.Namespace) -> None:
    """Check every folder that a command writes into.

    Raises:
        ValueError: If files cannot be made in one; of several, the first is named.
    """
    if _is_elsewhere(parsed):
        return
    for key, folder in _PLACES[parsed.command_name](parsed):
        check_writable(folder, key=key)


def _is_elsewhere(parsed: argparse.Namespace) -> bool:
    """Return whether other machines may do the work, or this process is one that a launcher started."""
    if getattr(parsed, "worker", False) or getattr(parsed, "hostfile", None) or getattr(parsed, "nodes", None):
        return True
    has_launcher = parsed.command_name in ("train", "reference")
    launcher = getattr(parsed, "launcher", None) or ("srun" if "SLURM_JOB_ID" in os.environ else None)
    return has_launcher and launcher == "srun"


def _of_train(parsed: argparse.Namespace) -> Iterator[Place]:
    config = _config(parsed)
    if config is not None:
        yield "run.output_dir", config.run_dir
        yield "run.output_dir", config.run_dir / CHECKPOINTS_FOLDER  # may be a link to another disk
        yield "data.cache_dir", config.cache_dir


def _of_prepare(parsed: argparse.Namespace) -> Iterator[Place]:
    config = _config(parsed)
    if config is not None:
        yield "data.cache_dir", config.cache_dir


def _of_reference(parsed: argparse.Namespace) -> Iterator[Place]:
    config = _config(parsed)
    if config is not None:
        yield from _of_result(parsed, config, "reference")
        yield "run.output_dir", config.run.output_dir
        yield "data.cache_dir", config.cache_dir


def _of_detect(parsed: argparse.Namespace) -> Iterator[Place]:
    config = _config(parsed)
    if config is not None:
        yield from _of_result(parsed, config, "prior")
        yield "data.cache_dir", config.cache_dir


def _of_result(parsed: argparse.Namespace, config: RunConfig, name: Literal["prior", "reference"]) -> Iterator[Place]:
    """Yield the folder of a file that the recipe's mixture section may name."""
    is_named = isinstance(getattr(config.mixture, name), Path)
    key = f"mixture.{name}" if is_named else "run.output_dir"
    yield from _output(parsed.output, key, default=config.default_output(name))


def _of_plan(parsed: argparse.Namespace) -> Iterator[Place]:
    config = _config(parsed)
    if config is not None:
        yield from _output(parsed.output, "run.output_dir", default=config.run.output_dir / "plan.json")


def _of_export(parsed: argparse.Namespace) -> Iterator[Place]:
    yield "--output", parsed.output or parsed.run_dir / EXPORT_FOLDER


def _of_evaluate(parsed: argparse.Namespace) -> Iterator[Place]:
    from versatune_ds.config import load_config

    if parsed.output is not None or is_run(parsed.model):
        yield from _output(parsed.output, "--output", default=parsed.model / "evaluation.json")
    recipe = parsed.data_recipe or parsed.model / CONFIG_FILE
    if recipe.is_file():
        yield "data.cache_dir", load_config(recipe, parsed.overrides).cache_dir


def _of_compare(parsed: argparse.Namespace) -> Iterator[Place]:
    from versatune_ds.comparison.comparison_file import read_plan

    if parsed.comparison.is_file():
        plan = read_plan(parsed.comparison, parsed.overrides)
        yield "output_dir", plan.folder
        yield "output_dir", plan.start_folder


def _config(parsed: argparse.Namespace) -> RunConfig | None:
    """Return the recipe; None where it comes from a pipe, which can be read once."""
    from versatune_ds.config import load_config

    return None if parsed.recipe.is_fifo() else load_config(parsed.recipe, parsed.overrides)


def _output(given: Path | None, key: str, *, default: Path) -> Iterator[Place]:
    """Yield the folder of a file; a device or a pipe, which --output may be, needs none."""
    if given is None:
        yield key, default.parent
    elif given.is_file() or not given.exists():
        yield "--output", given.parent


_PLACES: dict[str, Callable[[argparse.Namespace], Iterator[Place]]] = {
    "train": _of_train,
    "prepare": _of_prepare,
    "reference": _of_reference,
    "detect": _of_detect,
    "plan": _of_plan,
    "export": _of_export,
    "evaluate": _of_evaluate,
    "compare": _of_compare,
}
