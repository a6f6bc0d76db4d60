"""Draw batches with several processes on this machine, each with its own copy of the model.

The one idea: processes are handed batch numbers and give sequences back; only the parent writes. So there is one file,
one writer, and nothing to put together when a process or all of them are killed.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

from versatune_ds.config import RunConfig
from versatune_ds.distributed import World
from versatune_ds.knowledge.generate import SequenceGenerator
from versatune_ds.knowledge.sequences import DrawnSequence
from versatune_ds.model.build import build_causal_lm
from versatune_ds.training.prepared_data import load_or_train_tokenizer
from versatune_ds.training.worker import choose_device, set_threads


@dataclass(slots=True)
class _Worker:
    """Hold what a process of the pool keeps between batches."""

    load: Callable[[], SequenceGenerator] | None = None
    generator: SequenceGenerator | None = None


_WORKER = _Worker()


class GeneratorPool:
    """Draw batches with one process or several; a context manager, since processes must end.

    Args:
        config: The recipe; its model must be a saved one.
        num_processes: 1 draws in this process.
    """

    def __init__(self, config: RunConfig, *, num_processes: int) -> None:
        self._config = config
        self._num_processes = num_processes
        self._executor: ProcessPoolExecutor | None = None
        self._generator: SequenceGenerator | None = None

    def __enter__(self) -> GeneratorPool:
        return self

    def __exit__(self, *error: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def draw(self, batches: Sequence[int]) -> Iterator[tuple[int, list[DrawnSequence]]]:
        """Yield (batch number, sequences) of every batch, in the order in which they are done."""
        if not batches:
            return
        if self._num_processes == 1:
            self._generator = self._generator or load_generator(self._config, World())
            yield from ((batch, self._generator.draw(batch)) for batch in batches)
            return
        self._executor = self._executor or self._started()
        futures = {self._executor.submit(_draw, batch): batch for batch in batches}
        for future in as_completed(futures):
            yield futures[future], future.result()

    def _started(self) -> ProcessPoolExecutor:
        """Start the processes; each loads the model when its first batch comes."""
        context = multiprocessing.get_context("spawn")  # a forked process could not use the GPU
        counter = context.Value("i", 0)
        arguments = (self._config, self._num_processes, counter)
        return ProcessPoolExecutor(self._num_processes, context, initializer=_be_worker, initargs=arguments)


def load_generator(config: RunConfig, world: World) -> SequenceGenerator:
    """Load a recipe's model on this process's device, ready to draw.

    Raises:
        ValueError: If the model or its tokenizer cannot be loaded.
    """
    set_threads()
    device = choose_device(world)
    tokenizer = load_or_train_tokenizer(config)
    causal_lm = build_causal_lm(
        config.model, precision=config.train.precision, vocab_size=len(tokenizer), special_ids={}
    )
    return SequenceGenerator(causal_lm.to(device), tokenizer=tokenizer, sampling=config.detect.sampling)


def _be_worker(config: RunConfig, num_processes: int, counter: Any) -> None:
    """Take a number, which says which device is ours; the model is loaded by the first batch, which can fail in words.

    What an initializer raises, the pool turns into "a process ended abruptly".
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with counter.get_lock():
        rank = counter.value
        counter.value += 1
    os.environ["LOCAL_WORLD_SIZE"] = str(num_processes)
    world = World(rank=rank, world_size=num_processes, local_rank=rank, launcher="detect")
    _WORKER.load = functools.partial(load_generator, config, world)


def _end_with_parent() -> None:
    """Leave when the parent is gone: a pool's processes hold their own queue open and would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "started by the pool"
    parent.join()
    os._exit(1)


def _draw(batch: int) -> list[DrawnSequence]:
    """Return a batch in a process of the pool."""
    assert _WORKER.load is not None, "the initializer set it"
    _WORKER.generator = _WORKER.generator or _WORKER.load()
    return _WORKER.generator.draw(batch)
