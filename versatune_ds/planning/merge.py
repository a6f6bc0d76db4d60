"""The planner `merge`: the losses of averaged models predict those of training on the mixture.

theta(w) = theta_0 + sum_i w_i (theta_i - theta_0), with theta_i the model trained on domain i alone; one forward pass
over the held-out rows a mixture, no training. Losses are calibrated (`mixture/planning/calibration.py`).

Shape legend: **N** mixtures, **K** domains.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from versatune_ds.mixture.planning.calibration import CalibratedPredictor
from versatune_ds.mixture.planning.predictor import Planner, PlanTask, Predicted, Predictor
from versatune_ds.mixture.statistics import ExampleLosses
from versatune_ds.progress import with_progress


class Models(Protocol):
    """Models that can be averaged."""

    base: ExampleLosses

    def losses(self, weights_K: np.ndarray) -> ExampleLosses:
        """Return the losses of a merge."""


class MergedLosses:
    """The losses of merges, not calibrated.

    Args:
        models: The base model and the kept ones.
    """

    is_costly = True
    scale_error = 0.4
    """Root mean square of s_j - 1 over six domains each of the built-in corpus and of real rows."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._known: dict[bytes, ExampleLosses] = {}
        self.base_losses_K = models.base.mean()

    def losses(self, weights_K: np.ndarray) -> ExampleLosses:
        """Return the losses of a merge, by example; each is run once."""
        key = weights_K.tobytes()
        if key not in self._known:
            self._known[key] = self._models.losses(weights_K)
        return self._known[key]

    def predict(self, weights_NK: np.ndarray) -> Predicted:
        """Return the losses of N merges, and the standard errors of their changes from the base model's."""
        asked = with_progress(weights_NK, num_items=len(weights_NK), what="merged models: %s of this round")
        found = [self.losses(weights_K) for weights_K in asked]
        return Predicted(
            losses_NK=np.array([losses.mean() for losses in found]),
            stderrs_NK=np.array([losses.change_standard_error(self._models.base) for losses in found]),
        )


def _make(task: PlanTask) -> Predictor:
    # torch is loaded here, so that planning without models starts fast.
    from versatune_ds.planning.kept_runs import check_losses, open_kept_runs

    runs = open_kept_runs(task)
    merged = MergedLosses(runs.models)
    for corner_K, name in zip(np.eye(len(task.table.domain_set)), task.table.domain_set, strict=True):
        if name in runs.folders:
            check_losses(task, merged.losses(corner_K), name=name)
    return CalibratedPredictor(merged, task)


MERGE = Planner(
    name="merge",
    make=_make,
    needs="models",
    explain="the losses of a run on a mixture as those of the single-domain models, averaged in the mixture's shares",
    source="MergeMix, arXiv 2601.17858",
    differences=(
        "Losses are calibrated with the runs on single domains and on a mixture, and what a longer run adds is taken "
        "from the planner transfer; the paper uses ranks alone."
    ),
)
