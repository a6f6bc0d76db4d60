"""Start the processes of a comparison's runs, each with one rank, one thread and, where there are GPUs, one of them.

The one idea: without a GPU a run is forked from what is imported already, since on small models the imports would cost
as much as the training; with GPUs it is a new interpreter, since a forked one cannot use CUDA, and sees its GPU alone.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from versatune_ds.distributed.gpus import check_torch_sees_gpus
from versatune_ds.log import configure_logging

logger = logging.getLogger(__name__)

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_LAUNCHER_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def gpu_names() -> tuple[str, ...]:
    """Return this machine's GPUs as CUDA_VISIBLE_DEVICES names them; empty without one.

    Raises:
        ValueError: If there are some that torch does not see.
    """
    check_torch_sees_gpus(os.environ)
    return gpus_of(torch.cuda.device_count(), visible=os.environ.get(_VISIBLE, ""))


def gpus_of(count: int, *, visible: str) -> tuple[str, ...]:
    """Return the names of the GPUs this process may use.

    Worked example: two GPUs where CUDA_VISIBLE_DEVICES=4,6 are 4 and 6; where it is empty they are 0 and 1.
    """
    names = [name.strip() for name in visible.split(",") if name.strip()]
    return tuple(names[:count] if names else map(str, range(count)))


def num_jobs_of(asked: int | None, *, gpus: tuple[str, ...]) -> int:
    """Return the runs under way at a time: one a GPU, or one a core, unless another number is asked for.

    Raises:
        ValueError: If that is none.
    """
    if asked is not None and asked < 1:
        raise ValueError(f"--jobs={asked}: expected 1 or more")
    return asked or len(gpus) or len(os.sched_getaffinity(0))


def places(num_jobs: int, *, gpus: tuple[str, ...]) -> list[str | None]:
    """Return the GPU of each run that may be under way, None without GPUs; more runs than GPUs share them in turn."""
    return [gpus[i % len(gpus)] if gpus else None for i in range(num_jobs)]


def start_process(work: Callable[[], int], *, log: Path, gpu: str | None) -> BaseProcess:
    """Start a process that does some work, its output in a log.

    Args:
        work: Returns the process's exit code; can be pickled where there is a GPU.
        log: File that the output is appended to.
        gpu: The only one it sees, None without GPUs.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # a process forked after torch's thread pool was used would wait for it for ever
    context = multiprocessing.get_context("fork" if gpu is None else "spawn")
    process = context.Process(target=_work_alone, args=(work, log))
    with _seeing(gpu):
        process.start()
    return process


@contextmanager
def _seeing(gpu: str | None) -> Iterator[None]:
    """Let processes that are started meanwhile see one GPU alone: once theirs are imported it would be too late."""
    before = os.environ.get(_VISIBLE)
    if gpu is not None:
        os.environ[_VISIBLE] = gpu
    try:
        yield
    finally:
        if gpu is not None:
            os.environ.pop(_VISIBLE)
            os.environ.update({} if before is None else {_VISIBLE: before})


def _work_alone(work: Callable[[], int], log: Path) -> None:
    """Be the process: a world of one, one thread, output in the log."""
    _write_to(log)
    for name in _LAUNCHER_NAMES:
        os.environ.pop(name, None)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    code = 1
    try:
        code = work()
    except Exception:
        logger.exception("failed")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _write_to(log: Path) -> None:
    """Send all output of this process, of its libraries too, to a file."""
    stream = log.open("ab", buffering=0)
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    # What the process it was forked from put in their place, a test's capture for one, would get the lines otherwise.
    sys.stdout = sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)
    configure_logging()
