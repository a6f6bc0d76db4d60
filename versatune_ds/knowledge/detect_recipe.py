"""Run `versatune detect`: check the recipe, detect, write prior.json where `mixture.prior` will look for it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from versatune_ds.config import RunConfig, load_config
from versatune_ds.config.unread_settings import unread_detect_settings
from versatune_ds.knowledge.detect import detect
from versatune_ds.knowledge.prior_file import prior_table, prior_values, write_prior
from versatune_ds.launch.start import check_processes, num_visible_gpus
from versatune_ds.training.start_checks import StartCheckInput, check_start

logger = logging.getLogger(__name__)


def detect_recipe(recipe: Path, overrides: Sequence[str], *, processes: int | None, output: Path | None) -> str:
    """Detect what a recipe's base model knows and return what to show.

    Args:
        recipe: YAML file.
        overrides: `key=value` texts.
        processes: Processes that draw; None means one per GPU, or 1 without a GPU.
        output: Where prior.json goes; None means `default_output`.

    Raises:
        ValueError: If the recipe, its model, data or labeller is not as expected.
    """
    config = load_config(recipe, overrides)
    check_start(StartCheckInput(config=config, stage="detect"))
    for line in unread_detect_settings(config):
        logger.warning("%s", line)
    num_gpus = num_visible_gpus()
    num_processes = check_processes(processes, num_gpus=num_gpus)
    path = output or default_output(config)
    if path.suffix != ".json":
        raise ValueError(f"--output: {path}: expected a file that ends in .json")
    values = prior_values(detect(config, num_processes=num_processes), config.detect)
    chart = write_prior(path, values)
    return f"{prior_table(values)}\n\nprior  {path}\nchart  {chart}"


def default_output(config: RunConfig) -> Path:
    """Return the file that `mixture.prior` names, else NAME-prior.json in the folder of the runs."""
    if isinstance(config.mixture.prior, Path):
        return config.mixture.prior
    return config.run.output_dir / f"{config.run.name}-prior.json"
