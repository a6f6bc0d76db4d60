"""Gather what optimizer steps leave on every rank and turn it, now and then, into metrics.

The one idea: between two log lines everything stays on the device; a log line costs one wait for the device and one
all-reduce of 1 + 2K numbers.

Shape legend: **K** domains.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from versatune_ds.data.loader import StepBatch
from versatune_ds.distributed import sum_over_ranks
from versatune_ds.domains import DomainSet

if TYPE_CHECKING:
    from versatune_ds.engine.engine import StepResult


class Meter:
    """Sum step results and served tokens since the last reading.

    Args:
        domain_set: The run's domains.
    """

    def __init__(self, domain_set: DomainSet) -> None:
        self._domain_set = domain_set
        self._clear()

    def _clear(self) -> None:
        """Start a new interval."""
        self._results: list[StepResult] = []
        self._num_steps = 0
        self._num_tokens = 0
        self._wait_seconds = 0.0
        self._started = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time of what is not training: validation, saving."""
        stopped = time.perf_counter()
        yield
        self._started += time.perf_counter() - stopped

    def add(self, result: StepResult, data: StepBatch) -> None:
        """Take in one optimizer step; nothing is read from the device. The losses of a skipped step do not count."""
        self._results += [result] * result.is_applied
        self._num_steps += 1
        self._num_tokens += int(data.plan.num_tokens_K.sum())
        self._wait_seconds += data.wait_seconds

    @property
    def num_updates(self) -> int:
        """Return how many steps of this interval updated the weights."""
        return len(self._results)

    def read(self) -> dict[str, float]:
        """Return the interval's metrics, the same on every rank, and start the next interval.

        With L_r a rank's loss sum and M the global loss tokens of the interval's updates, train/loss = sum L_r / M; NaN
        without an update.
        Waits for the device. Communication: one all-reduce of 1 + 2K numbers.
        """
        K = len(self._domain_set)
        loss_sum = sum(float(result.loss_sum) for result in self._results)
        loss_sum_K = sum((result.loss_sum_K.cpu().numpy() for result in self._results), np.zeros(K))
        num_K = sum((result.num_loss_tokens_K.cpu().numpy() for result in self._results), np.zeros(K))
        totals = sum_over_ranks(np.concatenate([[loss_sum], loss_sum_K, num_K]))
        loss_sum_K, num_K = totals[1 : K + 1], totals[K + 1 :]
        seconds = time.perf_counter() - self._started
        num_loss_tokens = max(sum(result.num_loss_tokens_global for result in self._results), 1)
        metrics = {
            "train/loss": totals[0] / num_loss_tokens if self._results else math.nan,
            "perf/tokens_per_second": self._num_tokens / seconds,
            "perf/step_seconds": seconds / self._num_steps,
            "perf/data_seconds": self._wait_seconds / self._num_steps,
        }
        for i, name in enumerate(self._domain_set):
            if num_K[i]:
                metrics[f"domain/{name}/train_loss"] = loss_sum_K[i] / num_K[i]
        self._clear()
        return metrics
