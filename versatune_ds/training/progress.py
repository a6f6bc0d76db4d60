"""Gather what an interval of training came to, and hand it to the monitor.

The one idea: what is shown is what is recorded; both come from the same mapping of metrics.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from versatune_ds.data.order.plan import StepPlan
from versatune_ds.engine.optimizer import learning_rate_at
from versatune_ds.training.throughput import peak_memory_gib

if TYPE_CHECKING:
    from versatune_ds.training.run import Run


def log_step(run: Run, plan: StepPlan) -> None:
    """Read the meter and record the metrics. Every rank must call it: the meter communicates."""
    has_updates = run.meter.num_updates > 0
    metrics = run.meter.read()
    if has_updates and not math.isfinite(metrics["train/loss"]):
        run.monitor.alert(run.step, title="the loss is not finite", text=f"train/loss is {metrics['train/loss']}")
        raise RuntimeError(
            f"train/loss is {metrics['train/loss']} at step {run.step}, and the weights were updated: DeepSpeed's own "
            "check of gradients is off (bf16.check_grad_overflow). Turn it on and start again: the last whole "
            "checkpoint stands"
        )
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
    for domain_id in plan.exhausted:
        name = run.domain_set.names[domain_id]
        run.monitor.alert(run.step, title=f"{name} has no data left", text="its share goes to the other domains")
