"""Processes on this machine that share the work of a command: `evaluate` and `detect`.

A `ProcessPool` has a fixed number of processes, each of which loads something once (a model) and then works on items.
They end with this process, however it ends. They are spawned, since a forked process cannot use CUDA. Processes that
form one process group are started by a launcher (`start.py`); jobs of which each has a process to itself by `jobs.py`.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from versatune_ds.distributed import World
from versatune_ds.distributed.gpus import check_torch_sees_gpus, named_gpus, uses_gpus
from versatune_ds.exit_codes import is_interrupt
from versatune_ds.log import configure_logging

Loaded = TypeVar("Loaded")
Item = TypeVar("Item")
Result = TypeVar("Result")


class ProcessPool(Generic[Loaded]):
    """Processes that load something once each and then work on items; a context manager, since they must end.

    Args:
        load: Returns what the work needs, given the process's place among the others. Called at a process's first item,
            so that its exception reaches the caller; an exception in an initializer surfaces only as BrokenProcessPool.
        num_processes: 1 works in this process.
    """

    def __init__(self, load: Callable[[World], Loaded], *, num_processes: int) -> None:
        self._load = load
        self._num_processes = num_processes
        self._executor: ProcessPoolExecutor | None = None
        self._loaded: Loaded | None = None

    def __enter__(self) -> ProcessPool[Loaded]:
        return self

    def __exit__(self, *error: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def kill(self) -> None:
        """End the processes at once, whatever they work on or wait for."""
        if self._executor is not None:
            # Python 3.14 has kill_workers() for this; before, an executor only waits.
            for process in list((self._executor._processes or {}).values()):
                process.kill()

    def map(self, work: Callable[[Loaded, Item], Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result]]:
        """Yield (item, result) of every item, in the order in which they are done.

        Args:
            work: Can be pickled; gets what `load` returned, and an item.
            items: What there is to do.

        Raises:
            Exception: What `load` or `work` raised first, in any process.
        """
        if not items:
            return
        if self._num_processes == 1:
            if self._loaded is None:
                self._loaded = self._load(World())
            for item in items:
                yield item, work(self._loaded, item)
            return
        self._executor = self._executor or self._start()
        futures = {self._executor.submit(_work, self._load, work, item): item for item in items}
        for future in as_completed(futures):
            yield futures[future], future.result()

    def _start(self) -> ProcessPoolExecutor:
        """Return the executor; it starts processes as items come."""
        context = multiprocessing.get_context("spawn")
        level = logging.getLogger("versatune_ds").getEffectiveLevel()
        arguments = (context.Value("i", 0), self._num_processes, level)
        return ProcessPoolExecutor(self._num_processes, context, initializer=_initialize, initargs=arguments)


@dataclass(slots=True)
class _Process:
    """What a process of a pool keeps between items."""

    world: World | None = None
    loaded: Any = None


_PROCESS = _Process()


def _initialize(counter: Any, num_processes: int, log_level: int) -> None:
    """Take a number among the processes, which decides on the device, and log as that rank.

    Nothing heavy is imported before: what libraries log at import goes where it does in the parent.
    """
    call_when_parent_ends(lambda: os._exit(1))  # a pool's processes keep their own queue open and would wait for ever
    with counter.get_lock():
        rank = counter.value
        counter.value += 1
    configure_logging(rank=rank, world_size=num_processes, level=log_level)
    os.environ["LOCAL_WORLD_SIZE"] = str(num_processes)
    _PROCESS.world = World(rank=rank, world_size=num_processes, local_rank=rank, launcher="versatune")


def _work(load: Callable[[World], Any], work: Callable[[Any, Any], Any], item: Any) -> Any:
    """Work on an item in a process of a pool."""
    try:
        if _PROCESS.loaded is None:
            from versatune_ds.training.worker import set_threads  # imports DeepSpeed, so not before logging is set up

            assert _PROCESS.world is not None, "the initializer set it"
            set_threads()
            _PROCESS.loaded = load(_PROCESS.world)
        return work(_PROCESS.loaded, item)
    except Exception as error:
        if is_interrupt(error):  # the cause of an exception does not reach the caller
            raise KeyboardInterrupt from None
        raise


def device_of(world: World) -> torch.device:
    """Return a process's GPU, which it shares where there are more processes than GPUs, or the CPU.

    Raises:
        ValueError: If there are GPUs that torch does not see.
    """
    if not uses_gpus(os.environ):
        return torch.device("cpu")
    device = torch.device("cuda", world.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def gpu_names() -> tuple[str, ...]:
    """Return this machine's GPUs as CUDA_VISIBLE_DEVICES names them; empty without one.

    Worked example: two GPUs where CUDA_VISIBLE_DEVICES=4,6 are 4 and 6; where it is empty they are 0 and 1.

    Raises:
        ValueError: If there are some that torch does not see.
    """
    check_torch_sees_gpus(os.environ)
    count = torch.cuda.device_count()
    return tuple(named_gpus(os.environ)[:count] or map(str, range(count)))


def call_when_parent_ends(end: Callable[[], None]) -> None:
    """Call a function, in a thread, once the parent of this process is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "started by multiprocessing"

    def wait() -> None:
        parent.join()
        end()

    threading.Thread(target=wait, daemon=True).start()
