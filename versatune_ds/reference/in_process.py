"""Measure reference losses in this Python process, as `versatune_ds.reference` does, and leave it as it was."""

from __future__ import annotations

import os
from contextlib import ExitStack

from versatune_ds.config import RunConfig
from versatune_ds.distributed.gpus import uses_gpus
from versatune_ds.engine.deepspeed_quirks import ignore_renamed_torch_functions
from versatune_ds.engine.engine import leave_process_group
from versatune_ds.reference.command import ReferenceTask
from versatune_ds.reference.measure import measure_references, reference_setup
from versatune_ds.run_folder.folder_lock import release_all
from versatune_ds.training.in_process import process_as_it_was, stopped_by_interrupt, world_of_one
from versatune_ds.training.saved_model import with_saved_model
from versatune_ds.training.signals import StopSignals
from versatune_ds.training.start_checks import StartCheckInput, check_start


def reference_in_process(config: RunConfig, *, task: ReferenceTask) -> None:
    """Measure all requested domains as the only process, and write reference.json once all are known.

    Raises:
        ValueError: For a mistake in the recipe or its data, or where a launcher started several processes.
        RuntimeError: If this process has a process group already, or training fails.
        KeyboardInterrupt: After Ctrl-C; what was measured is kept.
    """
    world = world_of_one()
    stop_signals = StopSignals()
    with ExitStack() as stack:
        stack.enter_context(process_as_it_was())
        stack.enter_context(stopped_by_interrupt(stop_signals))
        stack.callback(leave_process_group)
        stack.callback(release_all)
        ignore_renamed_torch_functions()
        config = with_saved_model(config)
        fine_tuned = config.model_copy(update={"model": config.reference.model or config.model})
        device_type = "cuda" if uses_gpus(os.environ) else "cpu"
        check_start(StartCheckInput(config=fine_tuned, stage="reference", device_type=device_type, is_here=True))
        measure_references(reference_setup(config, task=task, world=world), task=task, stop_signals=stop_signals)
    if stop_signals.received is not None:
        raise KeyboardInterrupt("stopped; what was measured is kept: call it again to continue")
