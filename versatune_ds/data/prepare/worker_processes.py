"""Run one function on many arguments in processes that end with this one."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

Argument, Result = TypeVar("Argument"), TypeVar("Result")

_PR_SET_PDEATHSIG = 1

_work: Callable[[Any], Any] | None = None
"""The function of a worker process."""


@contextlib.contextmanager
def worker_processes(
    num_processes: int, *, function: Callable[[Argument], Result], what: str = "works"
) -> Iterator[Callable[[Argument], Callable[[], Result]]]:
    """Yield a function that gives an argument to the processes and returns a function that waits for the result.

    With one process nothing is started: the result is computed here, when it is asked for. Arguments that nobody took
    are dropped when the block ends.

    Args:
        num_processes: How many processes, started at the first argument.
        function: Called in the processes; on Linux they are forked, so that it may be any function.
        what: What a process does, for the message that one was killed: `tokenises`.

    Raises:
        RuntimeError: Where an argument is given or a result is awaited, if a process was killed.
    """
    if num_processes == 1:
        yield lambda argument: functools.partial(function, argument)
        return
    is_linux = sys.platform == "linux"
    library = ctypes.CDLL(None) if is_linux else None  # a child of a process with threads should load nothing
    executor = ProcessPoolExecutor(
        num_processes,
        mp_context=multiprocessing.get_context("fork" if is_linux else "spawn"),
        initializer=_start_worker,
        initargs=(function, library, os.getpid()),
    )

    def start(argument: Argument) -> Callable[[], Result]:
        with _killed_process_explained(what):
            future = executor.submit(_call, argument)
        return functools.partial(_result, future, what=what)

    try:
        yield start
    finally:
        executor.shutdown(cancel_futures=True)


def _start_worker(function: Callable[[Any], Any], library: ctypes.CDLL | None, parent: int) -> None:
    """Prepare a worker process.

    Its parent may be killed while it waits for work: it would wait forever and keep its memory. On Linux the kernel
    kills it then. Signals end it: the handlers of its parent, which it inherits, are not meant for it.
    """
    global _work
    _work = function
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # threads in each of several processes would be too many
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    if library is not None:
        library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before that
            os._exit(1)


def _call(argument: Any) -> Any:
    return _work(argument)


def _result(future: Future[Result], *, what: str) -> Result:
    with _killed_process_explained(what):
        return future.result()


@contextlib.contextmanager
def _killed_process_explained(what: str) -> Iterator[None]:
    """Turn the error for a killed process, which may come up at any call from then on, into one with advice."""
    try:
        yield
    except BrokenProcessPool:
        raise RuntimeError(
            f"data.num_processes: a process that {what} was killed, perhaps because memory ran out; start again, "
            f"with fewer processes if it did: finished blocks are kept"
        ) from None
