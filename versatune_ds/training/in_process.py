"""Train in this Python process, as `versatune_ds.train` does, and leave the process as it was.

The command line owns its process: it sets signal handlers, logging, environment and threads, and may end with an exit
code. A notebook or a script owns its own. So here everything is restored, a mistake or a failure is an exception, and
Ctrl-C (a notebook's stop button) saves the run before it becomes a KeyboardInterrupt.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import numpy as np
import torch
import torch.distributed as dist

from versatune_ds.config import RunConfig
from versatune_ds.distributed import World
from versatune_ds.distributed.world import discover_world
from versatune_ds.engine.deepspeed_quirks import ignore_renamed_torch_functions
from versatune_ds.engine.engine import leave_process_group
from versatune_ds.monitor.callbacks import Callbacks, CallbackSink
from versatune_ds.run_folder.folder_lock import release_all
from versatune_ds.training.assemble import MakeTasks, assemble_run
from versatune_ds.training.loop import measure_before_training
from versatune_ds.training.run import Run
from versatune_ds.training.saved_model import with_saved_model
from versatune_ds.training.signals import StopSignals
from versatune_ds.training.worker import take_place, train_to_the_end

logger = logging.getLogger(__name__)


def train_in_process(
    config: RunConfig,
    *,
    is_fresh: bool = False,
    callbacks: Callbacks | None = None,
    when_complete: Callable[[Path], None] = lambda run_dir: None,
    export_model: Callable[[Path], Path] | None = None,
    make_tasks: MakeTasks | None = None,
) -> None:
    """Train a run to its last step as the only process, or resume it; everything is in its folder afterwards.

    Args:
        config: The recipe.
        is_fresh: Whether an existing run folder is deleted first.
        callbacks: Functions of the user's; one that raises StopTraining ends the run after its step, saved.
        when_complete: Called with the run's folder after the last step.
        export_model: Exports the model of a run's folder, for a monitor that keeps it at the end.
        make_tasks: As `assemble_run` takes it.

    Raises:
        ValueError: For a mistake in the recipe, its files or its data, or where a launcher started several processes.
        RuntimeError: If this process has a process group already, or training fails; the last complete checkpoint is
            unchanged.
        KeyboardInterrupt: After Ctrl-C; steps that were taken are saved.
    """
    world = world_of_one()
    stop_signals = StopSignals()
    callback_sink = CallbackSink(callbacks or Callbacks(), stop=stop_signals.stop)
    with ExitStack() as stack:
        stack.enter_context(process_as_it_was())
        stack.enter_context(stopped_by_interrupt(stop_signals))
        stack.callback(leave_process_group)
        stack.callback(release_all)
        ignore_renamed_torch_functions()
        run = assemble_run(
            with_saved_model(config),
            world=world,
            device=take_place(world),
            is_fresh=is_fresh,
            stop_signals=stop_signals,
            export_model=export_model,
            more_sinks=[callback_sink],
            make_tasks=make_tasks,
        )
        stack.callback(run.engine.close)
        _measure_first(run)
        train_to_the_end(run, when_complete=when_complete)
    if stop_signals.received is not None and not run.is_complete and not callback_sink.is_stopped:
        raise KeyboardInterrupt(f"stopped after step {run.step}, state saved; train again to resume")


def _measure_first(run: Run) -> None:
    """Measure the losses before training; close what the run has opened if that fails."""
    try:
        measure_before_training(run)
    except BaseException:
        run.close(exit_code=1)
        raise


def world_of_one() -> World:
    """Return the place of the only process.

    Raises:
        ValueError: If a launcher started several processes.
        RuntimeError: If this process has a process group already.
    """
    world = discover_world(os.environ)
    if world.world_size > 1:
        raise ValueError(
            f"{world.launcher} started {world.world_size} processes of this program: expected one, which starts those "
            "it needs; run it with python alone and pass processes=N, or use `versatune train`"
        )
    if dist.is_initialized():
        raise RuntimeError("this process has a torch.distributed process group already; destroy it before training")
    return world


@contextmanager
def process_as_it_was() -> Iterator[None]:
    """Restore what a run changes in its process: environment, threads, generators, default dtype, device, warnings."""
    environ, num_threads, dtype = dict(os.environ), torch.get_num_threads(), torch.get_default_dtype()
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 - the user's global generator
    excepthook = sys.excepthook  # torch replaces it with the process group
    has_gpu = torch.cuda.is_available() and torch.cuda.is_initialized()
    device = torch.cuda.current_device() if has_gpu else None
    with warnings.catch_warnings(), torch.random.fork_rng(devices=range(torch.cuda.device_count()) if has_gpu else ()):
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(environ)
            sys.excepthook = excepthook
            torch.set_num_threads(num_threads)
            torch.set_default_dtype(dtype)
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
            if device is not None:
                torch.cuda.set_device(device)


@contextmanager
def stopped_by_interrupt(stop_signals: StopSignals) -> Iterator[None]:
    """Let the first Ctrl-C end the run after its step, saved; where nothing is to save, or again, it acts at once.

    Only the main thread gets signals: in another one nothing is changed.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return

    def receive(number: int, frame: FrameType | None) -> None:
        if not stop_signals.has_state or stop_signals.received is not None:
            raise KeyboardInterrupt
        stop_signals.received = signal.Signals(number)
        logger.info("interrupted: the run is saved after this step, then stops; interrupt again to stop at once")

    signal.signal(signal.SIGINT, receive)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
