"""Collect the results of optimizer steps, and record them as metrics every `monitor.log_every` steps.

Between two log lines everything stays on the device. A log line costs one wait for the device and one all-reduce of
1 + 2K numbers; of a mixture of experts, a second one of its router loss and its K * L * X counts of tokens. `Meter`
sums since the last log line, `TrainLosses` since the last update of the mixture, `ServedTokens` over the entire run.

Shape legend: **K** domains.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from versatune_ds.data.loader import StepBatch
from versatune_ds.data.order.plan import StepPlan
from versatune_ds.distributed import World, sum_over_ranks
from versatune_ds.domains import DomainSet
from versatune_ds.engine.engine import StepResult
from versatune_ds.engine.learning_rate import learning_rate_at
from versatune_ds.mixture.statistics import DomainStatistics
from versatune_ds.model.expert_load import expert_load_metrics
from versatune_ds.monitor.expert_file import ExpertFile
from versatune_ds.training.throughput import peak_memory_gib

if TYPE_CHECKING:
    from versatune_ds.training.run import Run

_SCALE = 2.0**16
"""Sums below 2^53 / 2^16 = 1.4e11 nats (squared nats) are exact; a step is rounded by at most 8e-6 of them."""


class Meter:
    """Sum step results and served tokens since the last reading."""

    def __init__(self, domain_set: DomainSet) -> None:
        self._domain_set = domain_set
        self.experts = ExpertFile()
        self._clear()

    def _clear(self) -> None:
        self._results: list[StepResult] = []
        self._num_steps = 0
        self._num_tokens = 0
        self._wait_seconds = 0.0
        self._started = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time spent on anything but training: validation, saving."""
        stopped = time.perf_counter()
        yield
        self._started += time.perf_counter() - stopped

    def add(self, result: StepResult, data: StepBatch) -> None:
        """Add one optimizer step; nothing is read from the device. The losses of a skipped step do not count."""
        if result.is_applied:
            self._results.append(result)
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
        without an update. Waits for the device. Communication: one all-reduce of 1 + 2K numbers.
        """
        # Sum over the interval's steps, then over ranks.
        K = len(self._domain_set)
        loss_sum = sum(float(result.loss_sum) for result in self._results)
        loss_sum_K = sum((result.by_domain.loss_sum_K.cpu().numpy() for result in self._results), np.zeros(K))
        num_K = sum((result.by_domain.num_loss_tokens_K.cpu().numpy() for result in self._results), np.zeros(K))
        totals = sum_over_ranks(np.concatenate([[loss_sum], loss_sum_K, num_K]))
        loss_sum_K, num_K = totals[1 : K + 1], totals[K + 1 :]

        # Divide by tokens and seconds.
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
        metrics |= self._router_metrics()
        self._clear()
        return metrics

    def _router_metrics(self) -> dict[str, float]:
        """Return the router loss and the load of the experts by domain; nothing of a model without experts.

        With l_rs the router loss of rank r at step s, train/router_loss = mean over r and s of l_rs: what was added to
        the token loss of a step. Communication: one all-reduce, if the model has either.
        """
        results, names = self._results, self._domain_set.names
        router_losses = [float(result.router_loss) for result in results if result.router_loss is not None]
        counts = [result.expert_counts_KLX for result in results if result.expert_counts_KLX is not None]
        if not router_losses and not counts:
            return {}
        counts_KLX = sum(part.cpu().numpy() for part in counts) if counts else np.zeros((len(names), 0, 0))
        loss_sum, num_losses, *flat = sum_over_ranks(
            np.concatenate([[sum(router_losses), len(router_losses)], counts_KLX.ravel()])
        )
        metrics = {"train/router_loss": loss_sum / num_losses} if num_losses else {}
        if not counts:
            return metrics
        total_KLX = np.reshape(flat, counts_KLX.shape)
        self.experts.add(total_KLX, num_steps=self._num_steps)
        return metrics | expert_load_metrics(total_KLX, names)


class ServedTokens:
    """Sum requested and realised units, and served tokens, by domain over the entire run; the same on every rank."""

    def __init__(self, num_domains: int) -> None:
        self.num_tokens_K = np.zeros(num_domains, dtype=np.int64)
        self.realised_units_K = np.zeros(num_domains, dtype=np.int64)
        self.requested_units_K = np.zeros(num_domains, dtype=np.float64)

    def add(self, plan: StepPlan) -> None:
        """Add one optimizer step's plan."""
        self.num_tokens_K += plan.num_tokens_K
        self.realised_units_K += plan.realised_units_K
        self.requested_units_K += plan.requested_units_K

    def metrics(self, names: tuple[str, ...]) -> dict[str, float]:
        """Return tokens served, share requested and share realised since the run began."""
        total = max(int(self.realised_units_K.sum()), 1)
        metrics: dict[str, float] = {}
        for i, name in enumerate(names):
            metrics[f"domain/{name}/num_tokens"] = int(self.num_tokens_K[i])
            metrics[f"domain/{name}/requested_share"] = float(self.requested_units_K[i] / total)
            metrics[f"domain/{name}/realised_share"] = float(self.realised_units_K[i] / total)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Return JSON-able, exact state."""
        return {key: getattr(self, key).tolist() for key in ("num_tokens_K", "realised_units_K", "requested_units_K")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load saved state."""
        for key, values in state.items():
            getattr(self, key)[:] = values


class TrainLosses:
    """Sum losses, their squares and loss tokens by domain since the last update: a signal without a pass of its own.

    Every contribution is a multiple of 2^-16, so float64 adds it without rounding, in any order and however it is
    spread over ranks, steps and restarts: a run that was stopped between two updates gets the same bits.
    """

    def __init__(self, num_domains: int, *, world: World) -> None:
        self._world = world
        self._restored = np.zeros(3 * num_domains)
        self._sums_3K: torch.Tensor | None = None

    def add(self, result: StepResult) -> None:
        """Add one optimizer step; nothing is read from the device. A skipped step does not count."""
        if not result.is_applied:
            return
        sums_3K = torch.round(torch.cat([part.double() for part in result.by_domain]) * _SCALE) / _SCALE
        self._sums_3K = sums_3K if self._sums_3K is None else self._sums_3K + sums_3K

    def take(self) -> DomainStatistics:
        """Return the sums over all ranks, and start again from zero.

        Waits for the device. Communication: one all-reduce of 3K numbers.
        """
        statistics = DomainStatistics.from_vector(self._total())
        self._restored, self._sums_3K = np.zeros_like(self._restored), None
        return statistics

    def _total(self) -> np.ndarray:
        """Return the sums over all ranks, float64 [3K]. Communication: one all-reduce."""
        own = 0.0 if self._sums_3K is None else self._sums_3K.cpu().numpy()
        return sum_over_ranks(self._restored + own)

    def state_dict(self) -> dict[str, Any]:
        """Return JSON-able, exact state, the same on every rank. Communication: one all-reduce of 3K numbers."""
        total = self._total()
        return {"sums": [float(value) if np.isfinite(value) else None for value in total]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load saved state; rank 0 keeps the sum of all ranks."""
        sums = np.array([np.nan if value is None else value for value in state["sums"]])
        self._restored = sums if self._world.is_rank_zero else np.zeros_like(sums)
        self._sums_3K = None


def log_step(run: Run, plan: StepPlan) -> None:
    """Record the metrics of the steps since the last call. Every rank must call it: the meter communicates.

    Raises:
        RuntimeError: If the loss is not finite although the weights were updated.
    """
    has_updates = run.meter.num_updates > 0
    metrics = run.meter.read()
    if has_updates and not math.isfinite(metrics["train/loss"]):
        run.monitor.alert(run.step, title="the loss is not finite", text=f"train/loss is {metrics['train/loss']}")
        raise RuntimeError(
            f"train/loss is {metrics['train/loss']} at step {run.step}, and the weights were updated: DeepSpeed's own "
            "check of gradients is off (bf16.check_grad_overflow). Turn it on and start again to resume from the last "
            "complete checkpoint"
        )

    # Numbers that every rank knows.
    metrics["train/num_skipped_steps"] = run.bad_steps.num_skipped
    metrics["train/grad_norm"] = run.engine.grad_norm()
    metrics["train/learning_rate"] = learning_rate_at(run.step, run.config.train)
    metrics["perf/memory_gib"] = peak_memory_gib()
    metrics |= run.throughput.metrics(metrics["perf/tokens_per_second"])
    metrics |= {f"domain/{name}/weight": float(plan.weights_K[i]) for i, name in enumerate(run.domain_set)}
    metrics |= run.served.metrics(run.domain_set.names)
    epochs_K = run.loader.epochs_K()
    metrics |= {f"domain/{name}/epochs": float(epochs_K[i]) for i, name in enumerate(run.domain_set)}
    run.monitor.metrics(run.step, metrics)
    if run.world.is_rank_zero:
        names, run_dir = run.domain_set.names, run.config.run_dir
        run.meter.experts.write(run_dir, domain_names=names, step=run.step, is_last=run.is_complete)

    for domain_id in plan.exhausted:
        name = run.domain_set.names[domain_id]
        run.monitor.alert(run.step, title=f"{name} has no data left", text="its share goes to the other domains")
