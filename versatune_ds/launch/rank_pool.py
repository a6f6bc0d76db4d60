"""Let the ranks that a launcher started, on one machine or several, work as a pool: `--sharded --nodes N`.

Rank 0 runs the command, and the others wait for work. Each round of a pool gives every rank one item, and rank 0 gets
all results, so the ranks work in step, as those of `sharded_pool.py` do. A rank that fails ends all (`run_rank`).
What is sent is pickled by this package for its own ranks, as Python's process pools do.
"""

from __future__ import annotations

import base64
import gc
import pickle
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from versatune_ds.distributed import World
from versatune_ds.distributed.collectives import broadcast_text, texts_of_ranks

Loaded = TypeVar("Loaded")
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(slots=True)
class _Leader:
    """The ranks that this process leads: what pools of a command find."""

    world: World | None = None
    num_pools: int = 0
    is_in_round: bool = False
    folders: list[Path] = field(default_factory=list)
    """Temporary folders of the command."""


_LEADER = _Leader()


def led_world() -> World | None:
    """Return rank 0's world while it leads other ranks; None in a process of its own."""
    return _LEADER.world


def remove_at_exit(folder: Path) -> None:
    """Delete a temporary folder also where this process ends at once; it may have a complete model."""
    _LEADER.folders.append(folder)


def remove_folders() -> None:
    """Delete the folders of `remove_at_exit`: a signal, or another rank's failure, ends this process."""
    for folder in _LEADER.folders:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def leading(world: World) -> Iterator[None]:
    """Let the pools of this block use all ranks; the others call `serve`. They are let go at its end.

    Where a round fails they are not: they may wait within it, and end as `run_rank` ends them.
    """
    _LEADER.world = world
    try:
        yield
    finally:
        _LEADER.world = None
        if not _LEADER.is_in_round:
            _send(("end",), world)


def serve(world: World) -> None:
    """Work for rank 0 until its command has ended."""
    loaded: dict[int, Any] = {}
    while True:
        kind, *message = _receive(world)
        if kind == "end":
            return
        if kind == "close":
            loaded.pop(message[0], None)
            gc.collect()  # a model with hooks refers to itself
            continue
        _work(loaded, message, world)


class RankPool(Generic[Loaded]):
    """All ranks as a pool; a context manager, with the interface of `ProcessPool`.

    Args:
        load: Called on every rank at the first item, with its place; can be pickled.
        world: Rank 0's place.
    """

    def __init__(self, load: Callable[[World], Loaded], *, world: World) -> None:
        self._load = load
        self._world = world
        self._loaded: dict[int, Any] = {}
        _LEADER.num_pools += 1
        self._number = _LEADER.num_pools

    def __enter__(self) -> RankPool[Loaded]:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        self._loaded.clear()
        gc.collect()  # as in `serve`: the next model would be loaded beside this one
        if not _LEADER.is_in_round:
            _send(("close", self._number), self._world)

    def map(self, work: Callable[[Loaded, Item], Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result]]:
        """Yield (item, result) of every item in order, a round of all ranks at a time.

        Communication: a round is one broadcast of the work, the work's own, and one sum of all results' bytes.
        """
        size = self._world.world_size
        for first in range(0, len(items), size):
            own = list(items[first : first + size])
            message = (self._number, self._load, work, own + own[-1:] * (size - len(own)))
            _LEADER.is_in_round = True
            _send(("work", *message), self._world)
            results = _work(self._loaded, message, self._world)
            _LEADER.is_in_round = False
            yield from zip(own, results, strict=False)  # what further ranks did is discarded


def _work(loaded: dict[int, Any], message: Sequence[Any], world: World) -> list[Any]:
    """Work on this rank's item of a round, and return the results of all ranks."""
    number, load, work, items = message
    if number not in loaded:
        loaded[number] = load(world)
    return [_unpacked(text) for text in texts_of_ranks(_packed(work(loaded[number], items[world.rank])), world)]


def _send(message: tuple[Any, ...], world: World) -> None:
    broadcast_text(_packed(message), world)


def _receive(world: World) -> tuple[Any, ...]:
    """Return rank 0's next message, however long its command takes until then."""
    return _unpacked(broadcast_text(None, world))


def _packed(value: Any) -> str:
    return base64.b64encode(pickle.dumps(value)).decode()


def _unpacked(text: str) -> Any:
    return pickle.loads(base64.b64decode(text))
