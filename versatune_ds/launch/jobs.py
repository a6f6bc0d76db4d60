"""Run jobs on this machine, each in a process of its own with its output in a log: the runs of a comparison.

Every job ends with this process, however it ends. It is forked, since on small models the imports would cost as much as
the training: without a GPU from this process; on a GPU from a server process that has imported everything and never
started CUDA, which a fork would not survive. So every run is a fresh process, and its result is that of a run alone.
Where a forked process cannot use CUDA, that is logged and jobs are spawned.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Literal

import torch

from versatune_ds.exit_codes import INTERRUPTED_EXIT_CODE, is_interrupt
from versatune_ds.launch.process_pool import call_when_parent_ends
from versatune_ds.launch.time_budget import TimeBudget
from versatune_ds.log import configure_logging

logger = logging.getLogger(__name__)

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_LAUNCHER_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_NVML_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"
"""Lets torch count GPUs without starting CUDA."""
_POLL_SECONDS = 0.05

StartMethod = Literal["fork", "forkserver", "spawn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Work for a process of its own: one rank, one thread."""

    name: str
    work: Callable[[], int]
    """Returns the process's exit code; can be pickled where there is a GPU."""
    log: Path
    """File that the output is appended to."""
    modules: tuple[str, ...] = ()
    """Modules that the server process imports before it forks jobs that use a GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    """A job whose process was started, and the GPU it sees."""

    job: Job
    gpu: str | None
    began: float


def run_jobs(
    jobs: Sequence[Job],
    *,
    num_at_a_time: int,
    gpus: tuple[str, ...],
    when_done: Callable[[Job, int], None],
    budget: TimeBudget | None = None,
) -> list[Job]:
    """Run jobs, several at a time; one that fails stops no other.

    Within a budget, none is started that would not end in time; those that run at its end are asked to stop (SIGTERM),
    then killed.

    Args:
        jobs: In the order in which they start.
        num_at_a_time: Jobs that run at a time.
        gpus: Names of the GPUs; each job sees one alone.
        when_done: Called with each job that has ended, and its exit code; not with one that the budget stopped.
        budget: Time for all of them, by default without a limit.

    Returns:
        The jobs that were not started, or stopped.
    """
    if not jobs:
        return []
    budget = budget or TimeBudget(None)
    method = start_method(jobs[0], gpus=gpus)
    waiting, free, stopped = list(jobs), places(num_at_a_time, gpus=gpus), []
    running: dict[BaseProcess, _Running] = {}
    is_stop_requested = False
    while running or (waiting and budget.has_time_for_next()):
        # Start what there is a place and time for.
        while waiting and free and budget.has_time_for_next():
            job, gpu = waiting.pop(0), free.pop(0)
            running[start_job(job, gpu=gpu, method=method)] = _Running(job=job, gpu=gpu, began=time.monotonic())
        # At the end of the time, ask those that run to stop, once; later kill them.
        if budget.is_over() and not is_stop_requested:
            logger.info("the time is over: stopping %s", ", ".join(place.job.name for place in running.values()))
            is_stop_requested = True
            for process in running:
                process.terminate()
        if (budget.seconds_to_kill() or 1.0) <= 0:
            for process in running:
                process.kill()
        # Report those that have ended.
        for process in [process for process in running if not process.is_alive()]:
            place = running.pop(process)
            free.append(place.gpu)
            process.join()
            if is_stop_requested and process.exitcode:
                stopped.append(place.job)
                continue
            if not process.exitcode:
                budget.record(time.monotonic() - place.began)
            when_done(place.job, process.exitcode or 0)
        time.sleep(_POLL_SECONDS)
    return [*stopped, *waiting]


def places(num_jobs: int, *, gpus: tuple[str, ...]) -> list[str | None]:
    """Return the GPU of each job that may run at a time, None without GPUs; more jobs than GPUs share them in turn."""
    return [gpus[i % len(gpus)] if gpus else None for i in range(num_jobs)]


def start_method(job: Job, *, gpus: tuple[str, ...]) -> StartMethod:
    """Return how the processes of jobs are started: see the module's docstring. A process is started to find out."""
    if not gpus:
        return "fork"
    log = job.log.with_name("cuda_check.log")
    trial = Job(name="cuda check", work=_use_cuda, log=log, modules=job.modules)
    process = start_job(trial, gpu=gpus[0], method="forkserver")
    process.join()
    if process.exitcode == 0:
        logger.info("every run is forked from a process that has imported everything")
        return "forkserver"
    logger.info("every run imports everything anew: a forked process cannot use CUDA here (see %s)", log)
    return "spawn"


def _use_cuda() -> int:
    """Start CUDA and compute something."""
    return int(torch.ones(2, device="cuda").sum().item() != 2)


def start_job(job: Job, *, gpu: str | None, method: StartMethod = "fork") -> BaseProcess:
    """Start the process of a job, which sees the GPU of that name alone, or none."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # a process forked after torch's thread pool was used would wait for it for ever
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(list(job.modules))
    process = context.Process(target=_run_and_exit, args=(job, gpu))
    with _environment(_VISIBLE, gpu), _environment(_NVML_CHECK, "1" if method == "forkserver" else None):
        process.start()
    return process


@contextmanager
def _environment(name: str, value: str | None) -> Iterator[None]:
    """Set a variable for processes started in the block; None leaves it as it is."""
    before = os.environ.get(name)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        if value is not None:
            os.environ.pop(name)
            os.environ.update({} if before is None else {name: before})


def _run_and_exit(job: Job, gpu: str | None) -> None:
    """Run a job in its process: a world of one, one thread, output in the log."""
    if gpu is not None:  # the server that forked this process has the first job's; CUDA reads it when it starts
        os.environ[_VISIBLE] = gpu
    _redirect_output(job.log)
    call_when_parent_ends(lambda: os.kill(os.getpid(), signal.SIGTERM))  # a run then saves before it ends
    for name in _LAUNCHER_NAMES:
        os.environ.pop(name, None)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    code = 1
    try:
        code = job.work()
    except (Exception, KeyboardInterrupt) as error:
        if is_interrupt(error):
            code = INTERRUPTED_EXIT_CODE
            logger.error("interrupted")
        else:
            logger.exception("failed")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _redirect_output(log: Path) -> None:
    """Send all output of this process, of its libraries too, to a file."""
    stream = log.open("ab", buffering=0)
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    # The parent may have replaced sys.stdout (pytest's capture); write to the log instead.
    sys.stdout = sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
    configure_logging()
