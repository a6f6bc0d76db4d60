"""A pool whose processes form one process group and divide a model's weights over it (ZeRO-3): `--sharded`.

A forward pass gathers weights from all processes, so they work in step: every item takes the same number of forward
passes, and every process gets the same number of items. Where items do not divide, the last one is worked on again, and
what comes of it is discarded. A process begins an item only with all others, so none of them gets two.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from versatune_ds.config.row_groups import check_divides_weights
from versatune_ds.distributed import World, free_port, join_world
from versatune_ds.launch.process_pool import ProcessPool, device_of, gpu_names
from versatune_ds.launch.rank_pool import RankPool, led_world

Loaded = TypeVar("Loaded")
Item = TypeVar("Item")
Result = TypeVar("Result")


class ShardedPool(Generic[Loaded]):
    """Processes that load a model in parts, together, and then work on items in step; a context manager.

    Args:
        load: As `ProcessPool` takes it; called in every process once the process group is made.
        num_processes: Two or more.
    """

    def __init__(self, load: Callable[[World], Loaded], *, num_processes: int) -> None:
        self._num_processes = num_processes
        self._pool: ProcessPool[Loaded] = ProcessPool(
            partial(_join_and_load, load, free_port()), num_processes=num_processes
        )

    def __enter__(self) -> ShardedPool[Loaded]:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if kind is not None:
            self._pool.kill()  # the others wait for the process that failed
        self._pool.__exit__(kind, *error)

    def map(self, work: Callable[[Loaded, Item], Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result]]:
        """Yield (item, result) of every item, in the order in which they are done, as `ProcessPool.map` does.

        Args:
            work: Makes the same number of forward passes for every item.
            items: What there is to do.
        """
        padded = [*items, *list(items[-1:]) * (-len(items) % self._num_processes)]
        for (number, item), result in self._pool.map(partial(_work_on_numbered, work), list(enumerate(padded))):
            if number < len(items):
                yield item, result


def open_pool(
    load: Callable[[World], Loaded], *, num_processes: int, is_sharded: bool
) -> ProcessPool[Loaded] | ShardedPool[Loaded] | RankPool[Loaded]:
    """Return the pool of a command: processes with a copy of the model each, or with a part of it each.

    The latter are the ranks of a launcher where it started this process, whatever their number.
    """
    world = led_world()
    if is_sharded and world is not None:
        return RankPool(load, world=world)
    pool = ShardedPool if is_sharded else ProcessPool
    return pool(load, num_processes=num_processes)


def check_sharded(num_processes: int) -> None:
    """Check the number of processes that a model's weights are divided over, all on this machine or of a launcher.

    Raises:
        ValueError: If there is one process, or fewer GPUs than processes.
    """
    check_divides_weights(num_processes)
    num_gpus = 0 if led_world() is not None else len(gpu_names())
    if num_gpus and num_processes > num_gpus:
        raise ValueError(
            f"--sharded --processes={num_processes}: expected a GPU for each process; {num_gpus} seen here"
        )


def _join_and_load(load: Callable[[World], Any], port: int, world: World) -> Any:
    """Join the process group of the pool, then load; all processes do at their first item."""
    from versatune_ds.engine.deepspeed_quirks import ignore_renamed_torch_functions  # imports DeepSpeed

    ignore_renamed_torch_functions()
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    join_world(world, device=device_of(world))
    return load(world)


def _work_on_numbered(work: Callable[[Any, Any], Any], loaded: Any, item: tuple[int, Any]) -> Any:
    return work(loaded, item[1])
