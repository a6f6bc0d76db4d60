"""One process of a run: join the world, assemble the run, train, leave with the right exit code.

A user error is reported in one line, by rank 0 or by the only rank that sees it, and ends all ranks with code 2.
A later failure leaves the last complete checkpoint as it was.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from versatune_ds.distributed import World, barrier, join_world, leave_world
from versatune_ds.distributed.failures import Failure, FailureBoard, RankZeroError
from versatune_ds.distributed.gpus import named_gpus, uses_gpus
from versatune_ds.distributed.world import discover_world, num_tasks_on_this_node
from versatune_ds.engine.deepspeed_quirks import ignore_renamed_torch_functions
from versatune_ds.exit_codes import (
    FAILED_EXIT_CODE,
    INTERRUPTED_EXIT_CODE,
    REQUEUE_EXIT_CODE,
    USER_ERROR_EXIT_CODE,
    is_interrupt,
)
from versatune_ds.log import configure_logging, log_imports
from versatune_ds.progress import before_output
from versatune_ds.run_folder.disk_errors import DiskError, with_full_disk_named
from versatune_ds.run_folder.folder_lock import release_all
from versatune_ds.text_table import counted
from versatune_ds.training.assemble import MakeTasks, assemble_run
from versatune_ds.training.loop import measure_before_training, train
from versatune_ds.training.run import Run
from versatune_ds.training.saved_model import load_recipe
from versatune_ds.training.signals import StopSignals

logger = logging.getLogger(__name__)

T = TypeVar("T")


def run_worker(
    recipe: Path,
    overrides: Sequence[str],
    *,
    is_fresh: bool,
    is_quiet: bool,
    when_complete: Callable[[Path], None],
    export_model: Callable[[Path], Path] | None = None,
    make_tasks: MakeTasks | None = None,
) -> int:
    """Run one process of a training run and return its exit code.

    Args:
        recipe: YAML file.
        overrides: `key=value` texts.
        is_fresh: Whether an existing run folder is deleted first.
        is_quiet: Whether only warnings are shown.
        when_complete: Called on rank 0 with the run's folder after the last step.
        export_model: Exports the model of a run's folder, for a monitor that keeps it at the end.
        make_tasks: As `assemble_run` takes it.

    Returns:
        0 when complete, 2 for a user's mistake, 75 when a signal stopped the run and it should be requeued; whatever
        else fails ends the process with 1.
    """

    def start(world: World, stop_signals: StopSignals) -> Run:
        config = load_recipe(recipe, overrides)
        device = take_place(world)
        run = assemble_run(
            config, world=world, device=device, is_fresh=is_fresh, stop_signals=stop_signals, export_model=export_model,
            make_tasks=make_tasks,
        )  # fmt: skip
        measure_before_training(run)
        return run

    def work(world: World, stop_signals: StopSignals) -> int:
        run = as_start_error(lambda: start(world, stop_signals), world)
        return train_to_the_end(run, when_complete=when_complete)

    return run_rank(work, is_quiet=is_quiet)


def run_rank(
    work: Callable[[World, StopSignals], int], *, is_quiet: bool, clean_up: Callable[[], None] | None = None
) -> int:
    """Run `work` as one rank: set up logging and signals, report failures to the other ranks, tear down the group.

    A failure is reported by the rank where it happened, and ends all ranks with one exit code: 2 for a ValueError,
    otherwise 1. A process that failed ends at once: leaving the process group may wait for a rank that is gone.

    Args:
        work: Returns the exit code.
        is_quiet: Whether only warnings are shown.
        clean_up: Of a command that saves nothing: called before a signal, or another rank's failure, ends this process.

    Returns:
        The exit code of `work`, or of the failure.
    """
    world = discover_world(os.environ)
    level = logging.WARNING if is_quiet else logging.INFO
    before_output()
    configure_logging(rank=world.rank, world_size=world.world_size, level=level)
    log_imports()
    ignore_renamed_torch_functions()
    stop_signals = StopSignals(clean_up=clean_up)
    stop_signals.install()

    def before_exit() -> None:
        release_all()
        if clean_up is not None:
            clean_up()

    board = FailureBoard(world, has_state=lambda: stop_signals.has_state, before_exit=before_exit)
    try:
        return work(world, stop_signals)
    except Exception as error:
        exit_code = _report(with_full_disk_named(error), world, board)
        if world.world_size == 1 and isinstance(error, StartError):
            return exit_code
        board.linger()
        release_all()
        logging.shutdown()
        os._exit(exit_code)
    finally:
        board.close()
        leave_world()


def _report(error: Exception, world: World, board: FailureBoard) -> int:
    """Report why this rank ends, unless another rank's failure is the cause, and return the exit code of all ranks."""
    is_interrupted = is_interrupt(error)
    exit_code = USER_ERROR_EXIT_CODE if isinstance(error, ValueError) else FAILED_EXIT_CODE
    if is_interrupted:
        exit_code = INTERRUPTED_EXIT_CODE
    failure = Failure(
        rank=world.rank,
        exit_code=exit_code,
        text="interrupted" if is_interrupted else str(error) or type(error).__name__,
        is_rank_zeros=isinstance(error, RankZeroError),
    )
    first = board.post(failure, report=lambda: _write_report(error, world, text=failure.text))
    if not board.is_mine_to_report(failure, first):
        board.leave_report_to_others()
        return first.exit_code
    board.report_once()
    return exit_code


def _write_report(error: Exception, world: World, *, text: str) -> None:
    """Write one line for a mistake, and log the traceback of any other failure."""
    is_interrupted = is_interrupt(error)
    is_debugging = os.environ.get("VERSATUNE_DEBUG", "0") != "0"
    is_one_line = isinstance(error, StartError) or (isinstance(error, DiskError) and not is_debugging)
    if not is_one_line and not is_interrupted:
        message = "rank %d failed; the last complete checkpoint is unchanged"
        logger.error(message, world.rank, exc_info=error)  # perhaps from another thread
    if isinstance(error, (ValueError, DiskError)) or is_interrupted:
        where = f" on {platform.node()}" if world.local_rank != world.rank else ""
        prefix = "" if world.is_rank_zero else f"rank {world.rank}{where}: "
        with contextlib.suppress(OSError):  # the log's disk may be full too; the exit code has to do then
            for line in text.splitlines():
                sys.stderr.write(f"versatune: {prefix}{line}\n")
            sys.stderr.flush()


class StartError(ValueError):
    """A user's mistake, found before training: reported in one line, without a traceback."""


def as_start_error(start: Callable[[], T], world: World) -> T:
    """Return what `start` returns; its ValueError becomes a StartError.

    Raises:
        StartError: For a ValueError: before training it is about what the user wrote. Every rank finds it and rank 0
            reports it; where machines differ, one rank alone may find it.
    """
    try:
        return start()
    except ValueError as error:
        if os.environ.get("VERSATUNE_DEBUG", "0") != "0":
            logger.exception("rank %d", world.rank)
        raise StartError(str(error) or type(error).__name__) from error


def take_place(world: World) -> torch.device:
    """Join the world with this process's share of cores, and return its device.

    Raises:
        ValueError: If the processes of this machine outnumber its GPUs. Rank 0, on another machine, may not see that
            and wait, so this machine's first process logs it too.
    """
    set_threads()
    try:
        device = choose_device(world)
    except ValueError as error:
        if world.local_rank == 0 and not world.is_rank_zero:
            logger.error("%s: %s", platform.node(), error)
        raise
    join_world(world, device=device, is_one_machine=num_local_processes() == world.world_size)
    return device


def train_to_the_end(run: Run, *, when_complete: Callable[[Path], None]) -> int:
    """Train, close the monitor with the exit code, and show the result.

    Args:
        run: The run, its losses before training measured.
        when_complete: Called on rank 0 with the run's folder after the last step.

    Returns:
        0 when complete, 75 where a signal stopped the run.
    """
    run.stop_signals.begin_steps()
    exit_code = 1
    try:
        exit_code = 0 if train(run) else REQUEUE_EXIT_CODE
        run.stop_signals.ignore()
    finally:
        run.close(exit_code=exit_code)
    if exit_code == 0 and run.world.is_rank_zero:
        when_complete(run.config.run_dir)
    barrier()  # ranks leave together: when the first leaves with 75, the launcher kills the others
    run.release()
    return exit_code


def set_threads() -> None:
    """Set torch's threads to this process's share of the machine's cores.

    The deepspeed launcher, mpirun and srun leave OMP_NUM_THREADS unset, and every process then uses every core: two
    processes with two threads on two cores were 7 times slower than with one (torch 2.13, gloo).

    If srun or mpirun bound this process to some cores (srun --cpus-per-task), those are its own and are not divided.
    torchrun and the deepspeed launcher bind nothing: their processes share the cores they inherit.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return
    num_machine_cores = os.cpu_count() or 1
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else num_machine_cores
    is_shared = num_cores >= num_machine_cores or any(name in os.environ for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE"))
    torch.set_num_threads(max(1, num_cores // num_local_processes() if is_shared else num_cores))


def num_local_processes() -> int:
    """Return how many processes of the run share this machine, from the launcher's variables; 1 without them."""
    for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"):
        if os.environ.get(name, "").isdigit():
            return max(1, int(os.environ[name]))
    return num_tasks_on_this_node(os.environ) or 1


def choose_device(world: World) -> torch.device:
    """Return this process's GPU, or the CPU where there is none or DS_ACCELERATOR=cpu asks for it.

    Raises:
        ValueError: If the processes of this machine outnumber its GPUs, or torch does not see those there are.
    """
    if not uses_gpus(os.environ):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        return torch.device("cpu")
    index = device_index(
        world.local_rank,
        num_gpus=torch.cuda.device_count(),
        num_local=max(num_local_processes(), world.local_rank + 1),
        is_one_gpu_given=len(named_gpus(os.environ)) == 1,
    )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def device_index(local_rank: int, *, num_gpus: int, num_local: int, is_one_gpu_given: bool) -> int:
    """Return the index of a process's GPU among those it sees: its local rank, or 0 where it sees its own GPU only.

    Args:
        local_rank: The process's number on its machine.
        num_gpus: GPUs that it sees.
        num_local: Processes on its machine.
        is_one_gpu_given: Whether CUDA_VISIBLE_DEVICES lists one GPU, as under srun --gpus-per-task=1. That each process
            has a different one is not checked here; NCCL refuses two ranks on one GPU.

    Raises:
        ValueError: If processes would have to share a GPU.
    """
    if num_local <= num_gpus:
        return local_rank
    if num_gpus == 1 and is_one_gpu_given:
        return 0
    raise ValueError(
        f"{num_local} processes on this machine see {counted(num_gpus, 'GPU')}: expected a GPU for each process; "
        "start fewer, give each its own (srun --gpus-per-task=1), or set DS_ACCELERATOR=cpu"
    )
