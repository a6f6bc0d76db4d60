"""Start the processes of `versatune reference` on this machine, after the checks that need none of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from versatune_ds.config import load_config
from versatune_ds.data.sources.domain_files import check_data_files
from versatune_ds.engine.ds_checks import check_deepspeed_settings, check_model_settings
from versatune_ds.engine.ds_settings import deepspeed_config
from versatune_ds.launch.launchers import Layout, check_started_once, choose_launcher
from versatune_ds.launch.start import check_model_keys, check_processes, num_visible_gpus, run_ranks
from versatune_ds.model.named_model import check_saved_model
from versatune_ds.reference.task import ReferenceTask
from versatune_ds.training.prepared_data import cache_folder


def launch_reference(
    recipe: Path, overrides: Sequence[str], *, processes: int | None, task: ReferenceTask, is_quiet: bool
) -> int:
    """Check the recipe, start the processes that measure its references, and return the launcher's exit code.

    Args:
        recipe: YAML file.
        overrides: `key=value` texts.
        processes: Number of processes; None means one per GPU, or 1 without a GPU.
        task: What is asked for; the started processes are asked for the same.
        is_quiet: Whether only warnings are shown.

    Raises:
        ValueError: If the recipe or the number of processes is wrong, before any process is started.
    """
    check_started_once(os.environ)
    config = load_config(recipe, overrides)
    num_gpus = num_visible_gpus()
    device_type = "cuda" if num_gpus else "cpu"
    layout = Layout(processes=check_processes(processes, num_gpus=num_gpus), nodes=1)
    ds_config = deepspeed_config(config.train, world_size=layout.processes)
    check_deepspeed_settings(config.train, ds_config, device_type=device_type)
    model = config.reference.model or config.model
    check_model_settings(model, ds_config)
    check_model_keys(model)
    check_saved_model(model)
    check_data_files(config.data, cache_dir=cache_folder(config))
    os.environ.setdefault("DS_ACCELERATOR", device_type)
    words = [str(recipe), *overrides, *task.flags(), *["--quiet"] * is_quiet]
    return run_ranks(choose_launcher(None, environ=os.environ), layout, script="reference.py", words=words)
