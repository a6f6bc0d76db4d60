"""Run a function on the ranks of a world by forking, which takes a second; a launcher takes ten.

The children inherit the imported modules. torch must not have used its thread pool before (one thread per process).
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from versatune_ds.distributed import World, free_port, join_world, leave_world


def run_ranks(function: Callable[[World], Any], *, world_size: int, folder: Path, timeout: float = 240.0) -> list[Any]:
    """Run `function(world)` on each rank, and return the results in rank order.

    Args:
        function: Called in each process with the process group ready; its result must pickle.
        world_size: Number of processes.
        folder: Empty folder for results, usually tmp_path.
        timeout: Seconds until all ranks are killed.

    Raises:
        AssertionError: With the traceback of the first rank that failed, or if one did not end in time.
    """
    processes = start_ranks(function, world_size=world_size, folder=folder)
    _wait(processes, folder=folder, timeout=timeout)
    late = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for process in processes:
        process.kill()
    results = [_read(folder / f"rank_{rank}.pickle") for rank in range(world_size)]
    failures = [result for result in results if isinstance(result, _Failure)]
    raised = [failure.text for failure in failures if "Traceback" in failure.text]
    assert not raised, "\n".join(raised)
    assert not failures, failures[0].text
    assert not late, f"ranks {late} did not end within {timeout} s"
    return results


def start_ranks(function: Callable[[World], Any], *, world_size: int, folder: Path) -> list[Any]:
    """Start `function(world)` on each rank and return the processes; the results are written into the folder."""
    port = free_port()
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=_run_rank, args=(function, rank, world_size, port, folder)) for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    return processes


def _wait(processes: list[Any], *, folder: Path, timeout: float) -> None:
    """Wait for all ranks; once one has failed, give the others a few seconds to fail too."""
    end = time.monotonic() + timeout
    while any(process.is_alive() for process in processes) and time.monotonic() < end:
        ended = [rank for rank, process in enumerate(processes) if not process.is_alive()]
        if any(isinstance(_read(folder / f"rank_{rank}.pickle"), _Failure) for rank in ended):
            end = min(end, time.monotonic() + 3.0)
        time.sleep(0.02)


class _Failure:
    def __init__(self, text: str) -> None:
        self.text = text


def _run_rank(function: Callable[[World], Any], rank: int, world_size: int, port: int, folder: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_SIZE=str(world_size))
    torch.set_num_threads(1)
    world = World(rank=rank, world_size=world_size, local_rank=rank, launcher="test")
    try:
        join_world(world, device=torch.device("cpu"))
        result = function(world)
    except BaseException:
        result = _Failure(f"rank {rank}:\n{traceback.format_exc()}")
    (folder / f"rank_{rank}.pickle").write_bytes(pickle.dumps(result))
    if not isinstance(result, _Failure):
        leave_world()
    os._exit(0)


def _read(path: Path) -> Any:
    return pickle.loads(path.read_bytes()) if path.is_file() else _Failure(f"{path.stem} exited without a result")
