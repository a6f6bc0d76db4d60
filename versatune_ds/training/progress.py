"""Say on the terminal, and to the monitor, how far the run is and what the controller did.

The one idea: what is shown is what is recorded; both come from the same mapping of metrics.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from versatune_ds.data.plan import StepPlan
from versatune_ds.mixture.decision import Decision
from versatune_ds.training.engine import learning_rate_at

if TYPE_CHECKING:
    from versatune_ds.training.run import Run

logger = logging.getLogger(__name__)


def log_step(run: Run, plan: StepPlan) -> None:
    """Read the meter, record the metrics and show one line. Every rank must call it: the meter communicates."""
    metrics = run.meter.read()
    if not math.isfinite(metrics["train/loss"]):
        raise RuntimeError(
            f"train/loss is {metrics['train/loss']} at step {run.step}: training cannot go on from here. Lower "
            "train.learning_rate or train.max_grad_norm and start again: the last whole checkpoint stands"
        )
    metrics["train/grad_norm"] = run.engine.grad_norm()
    metrics["train/learning_rate"] = learning_rate_at(run.step, run.config.train)
    metrics |= {f"domain/{name}/weight": float(plan.weights_K[i]) for i, name in enumerate(run.domain_set)}
    metrics |= run.served.metrics(run.domain_set.names)
    epochs_K = run.loader.epochs_K()
    metrics |= {f"domain/{name}/epochs": float(epochs_K[i]) for i, name in enumerate(run.domain_set)}
    run.monitor.metrics(run.step, metrics)
    remaining = (run.config.train.steps - run.step) * metrics["perf/step_seconds"]
    logger.info(
        "step %d/%d  loss %.3f  grad %.2f  %s tokens/s  %s left",
        run.step,
        run.config.train.steps,
        metrics["train/loss"],
        metrics["train/grad_norm"],
        f"{metrics['perf/tokens_per_second']:,.0f}",
        duration(remaining),
    )


def duration(seconds: float) -> str:
    """Return seconds as h:mm:ss, or m:ss below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def log_decision(run: Run, decision: Decision) -> None:
    """Show one line per domain: validation loss, potential, weight before and after."""
    logger.info("update %d after step %d: %s", decision.update, decision.decided_at_step, decision.reason)
    for name in run.domain_set:
        before, after = decision.weights_before[name], decision.weights_after[name]
        arrow = "=" if abs(after - before) < 5e-5 else "up" if after > before else "down"
        loss = decision.losses[name]["mean"]
        logger.info(
            "  %-12s loss %-7s weight %.4f -> %.4f  %s",
            name,
            "-" if loss is None else f"{loss:.3f}",
            before,
            after,
            arrow,
        )
