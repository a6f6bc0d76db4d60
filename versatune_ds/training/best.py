"""Judge a run by its held-out losses: which checkpoint is the best, and whether training has stopped gaining.

Rank 0 computes the number that a measurement is judged by, and all ranks get it, so all of them save the same
checkpoints and end after the same step. The measurement before training is what the others are compared with; it is
neither a best checkpoint nor one of the measurements that patience counts. The one after the last step may be the best,
but patience counts it only where an update makes it.

Shape legend: **K** domains.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from versatune_ds.config import RunConfig
from versatune_ds.config.held_out_metric import WORST_DOMAIN, EarlyStoppingConfig, domain_of_metric
from versatune_ds.distributed import World, from_rank_zero
from versatune_ds.domains import DomainSet, nearest_name
from versatune_ds.mixture.statistics import ExampleLosses
from versatune_ds.run_folder.names import MANIFEST_FILE, checkpoint_folder
from versatune_ds.training.prepared_data import RunSetup

logger = logging.getLogger(__name__)


def metric_value(metric: str, losses: ExampleLosses, *, start_K: np.ndarray, domain_set: DomainSet) -> float:
    """Return the number that a measurement is judged by; NaN where a loss it depends on is no number. Lower is better.

    Example: losses 2.0 and 1.0 at step 0, now 1.8 and 1.1: changes of -0.10 and +0.10 of the loss at step 0, so
    `worst_domain` is 0.10; `validation/loss` is 1.45.

    Args:
        metric: `validation/loss`, `worst_domain` or `domain/NAME/loss`.
        losses: The measurement; domains without held-out rows do not count.
        start_K: Losses at step 0.
        domain_set: Names of the domains.
    """
    loss_K, domain = losses.mean(), domain_of_metric(metric)
    if domain is not None:
        return float(loss_K[domain_set.id_of(domain)])
    is_measured_K = losses.num_loss_tokens() > 0
    if not is_measured_K.any():
        return math.nan
    if metric == WORST_DOMAIN:
        return float(((loss_K - start_K) / start_K)[is_measured_K].max())
    return float(loss_K[is_measured_K].mean())


class BestCheckpoint:
    """Find the step with the lowest value so far, whose checkpoint is kept.

    Args:
        metric: `checkpoint.best`.
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.step: int | None = None
        """Step of the best measurement, None before the first."""
        self.value = math.inf
        self.is_unsaved = False
        """Whether the best measurement has no checkpoint yet: it is due now."""
        self._saved: tuple[int | None, float] = (None, math.inf)
        """Step and value of the best measurement whose checkpoint is complete."""
        self._being_saved: tuple[int | None, float] | None = None
        """The same of the one whose checkpoint is being written."""

    def record(self, step: int, value: float) -> None:
        """Record the value of a measurement; a tie stays with the earlier one, and NaN is never the best."""
        if not value < self.value:
            return
        before = "" if self.step is None else f", after step {self.step} it was {self.value:.4f}"
        logger.info("best checkpoint: %s is %.4f after step %d%s", self.metric, value, step, before)
        self.step, self.value, self.is_unsaved = step, value, True

    def before_save(self) -> None:
        """Record that the state is about to be saved, perhaps in the background."""
        self._being_saved = (self.step, self.value) if self.is_unsaved else None
        self.is_unsaved = False

    def after_save(self, *, is_saved: bool) -> None:
        """Record that the state was saved; or that it could not be, and the best checkpoint before it remains.

        A still better measurement made since `before_save` stays the best.
        """
        being_saved, self._being_saved = self._being_saved, None
        if being_saved is None:
            return
        if is_saved:
            self._saved = being_saved
        elif (self.step, self.value) == being_saved:
            self.step, self.value = self._saved

    def forget_if_lost(self, run_dir: Path, world: World) -> None:
        """Start again where the best checkpoint was deleted. Communication: rank 0's answer is broadcast."""
        step = self.step
        if step is None or from_rank_zero(
            lambda: (checkpoint_folder(run_dir, step=step) / MANIFEST_FILE).is_file(), world
        ):
            return
        logger.warning("the best checkpoint, of step %d, is gone; the next measurement is the best one", step)
        self.step, self.value = self._saved = (None, math.inf)

    def state_dict(self) -> dict[str, Any]:
        """Return JSON-able state, the same on every rank."""
        return {"metric": self.metric, "step": self.step, "value": None if self.step is None else self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load saved state, unless it was judged by another metric: then the next measurement is the best one."""
        if state["metric"] != self.metric:
            logger.warning(
                "checkpoint.best: now %s, was %s; the best so far is forgotten", self.metric, state["metric"]
            )
        elif state["step"] is not None:
            self.step, self.value = self._saved = (state["step"], state["value"])


class EarlyStopping:
    """Count the measurements since the last one with a new lowest value.

    Args:
        settings: `train.early_stopping`.
    """

    def __init__(self, settings: EarlyStoppingConfig) -> None:
        self._settings = settings
        self._step: int | None = None
        self._lowest = math.inf
        self._num_without = 0
        self.stopped_after: int | None = None
        """Step after which it ended the run."""

    @property
    def metric(self) -> str:
        """Return what must fall."""
        return self._settings.metric

    @property
    def is_over(self) -> bool:
        """Return whether `patience` measurements in a row have brought no new lowest value."""
        return self._num_without >= self._settings.patience

    def record(self, step: int, value: float) -> None:
        """Record the value of a measurement; NaN is no new lowest one.

        Example: min_delta 0.1 and the values 2.0, 1.95, 1.85: the last one is the second that counts as lower.
        """
        if self._step is None or value < self._lowest - self._settings.min_delta:
            self._step, self._lowest, self._num_without = step, math.inf if math.isnan(value) else value, 0
        else:
            self._num_without += 1

    def reason(self) -> str:
        """Return in words why the run ends."""
        by = f" by more than {self._settings.min_delta:g}" if self._settings.min_delta else ""
        return (
            f"{self.metric} has not fallen{by} in {self._num_without} measurements in a row; its lowest was "
            f"{self._lowest:.4f} after step {self._step}"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return JSON-able state, the same on every rank."""
        return {
            "metric": self.metric,
            "min_delta": self._settings.min_delta,
            "step": self._step,
            "lowest": self._lowest if math.isfinite(self._lowest) else None,
            "num_without": self._num_without,
            "stopped_after": self.stopped_after,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load saved state, unless it counted something else: then the next measurement is the first one."""
        if (state["metric"], state["min_delta"]) != (self.metric, self._settings.min_delta):
            logger.warning("train.early_stopping: its settings changed since the checkpoint; it counts from the start")
            return
        self._step, self._num_without = state["step"], state["num_without"]
        self._lowest = math.inf if state["lowest"] is None else state["lowest"]
        self.stopped_after = state["stopped_after"] if self.is_over else None


def judging_keys(config: RunConfig) -> dict[str, str]:
    """Return the metrics that a recipe judges its run by, by their keys."""
    stopping = config.train.early_stopping
    keys = {"checkpoint.best": config.checkpoint.best}
    keys["train.early_stopping.metric"] = None if stopping is None else stopping.metric
    return {key: metric for key, metric in keys.items() if metric is not None}


def check_judged(key: str, metric: str, *, domains: Sequence[str] | None, signal: str) -> None:
    """Check that a run has the held-out losses that a key needs.

    Args:
        key: The recipe's key.
        metric: Its value.
        domains: Names of the run's domains; None where they are not known yet.
        signal: `mixture.signal`.

    Raises:
        ValueError: If held-out losses are not measured while training, or the domain does not exist.
    """
    if signal == "train":
        raise ValueError(
            f"{key}: {metric} needs held-out losses, which mixture.signal={signal} measures only before the first and "
            "after the last step; leave the key out, or set mixture.signal=validation"
        )
    if signal != "validation" and metric == "worst_domain":
        raise ValueError(
            f"{key}: worst_domain compares held-out losses with those before training, where mixture.signal={signal} "
            "records its own numbers; choose validation/loss or domain/NAME/loss"
        )
    domain = domain_of_metric(metric)
    if domain is not None and domains is not None and domain not in domains:
        raise ValueError(f"{key}: {metric}: there is no domain {domain!r}; {nearest_name(domain, domains)}")


def check_judged_rows(setup: RunSetup) -> None:
    """Check that the domain whose loss judges a run has held-out rows.

    Raises:
        ValueError: If it has none.
    """
    rows = {part.name: part.num_examples for part in setup.data.valid}
    for key, metric in judging_keys(setup.config).items():
        domain = domain_of_metric(metric)
        if domain is not None and not rows[domain]:
            raise ValueError(
                f"{key}: {metric}: {domain} has no held-out rows; give it some (data.domains.{domain}.valid, or "
                "data.valid_fraction), or choose another metric"
            )


def new_judges(config: RunConfig) -> dict[str, Any]:
    """Return the parts of a run that judge its held-out losses, by their names in `Run`; None for what is off."""
    best, stopping = config.checkpoint.best, config.train.early_stopping
    return {
        "best": None if best is None else BestCheckpoint(best),
        "early_stopping": None if stopping is None else EarlyStopping(stopping),
    }


def is_complete_at(state: Mapping[str, Any], *, early_stopping: EarlyStopping | None) -> bool:
    """Return whether a run is complete at a checkpoint: not where it ended early and its settings no longer end it.

    Args:
        state: The checkpoint's own state.
        early_stopping: The part that loaded it; None where the recipe has none any more.
    """
    is_still_over = early_stopping is not None and early_stopping.stopped_after is not None
    return state["is_complete"] and (_stopped_after(state) is None or is_still_over)


def early_stop_text(state: Mapping[str, Any]) -> str:
    """Return what to know of a complete run that ended early, to follow `complete`; empty for one that did not."""
    step = _stopped_after(state)
    if step is None:
        return ""
    return f": stopped early after step {step}; a larger train.early_stopping.patience, or null, trains on"


def _stopped_after(state: Mapping[str, Any]) -> int | None:
    """Return the step after which early stopping ended the run that saved a checkpoint, None where it did not."""
    return (state.get("early_stopping") or {}).get("stopped_after")
