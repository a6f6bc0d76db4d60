"""What a planner is: one frozen value that makes a predictor, and all that the rest of the package needs to know of it.

A predictor answers one question: which held-out losses would a run end with, if it trained on these weights from its
first step to its last? Everything else (bounds, search, front, the file, the pictures) is the same for all of them.

Shape legend: **N** mixtures, **K** domains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from versatune_ds.mixture.planning.transfer_table import TransferTable

if TYPE_CHECKING:
    from versatune_ds.mixture.planning.goal import Goal
    from versatune_ds.mixture.planning.limits import Limits


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Predicted:
    """Predicted held-out losses at the end of a run; NaN for a domain without held-out rows."""

    losses_NK: np.ndarray
    """float64, nats per loss token."""
    stderrs_NK: np.ndarray
    """float64, standard errors of the predictions, in nats per loss token; they include the error of a calibration."""


class Predictor(Protocol):
    """Predict the losses of mixtures."""

    @property
    def is_costly(self) -> bool:
        """Whether a prediction costs about a forward pass over the held-out rows, so that a hundred are many.

        A closed form is not costly: a search then asks for tens of thousands.
        """
        ...

    @property
    def calibration(self) -> Mapping[str, Any]:
        """How the losses were calibrated, for plan.json; empty where they were not."""
        ...

    def predict(self, weights_NK: np.ndarray) -> Predicted:
        """Predict the losses of N mixtures, in one batch.

        Args:
            weights_NK: float64, each row on the simplex: not negative, with sum 1.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlanTask:
    """What a plan is for: all that a predictor may depend on besides the weights."""

    table: TransferTable
    num_steps: int
    """Optimizer steps of the planned run."""
    num_tokens: float
    """Tokens that it trains on, padding not counted. Approximate: rows are filled as in the transfer table's runs."""
    folder: Path
    """Where the transfer table's file lies; `Source.model` is relative to it."""
    seed: int = 0
    config: Any = None
    """The recipe as a `RunConfig`, for planners that run models; no config is known in this room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planner:
    """A way to predict what mixtures lead to, as `versatune plan --planner NAME` chooses it."""

    name: str
    make: Callable[[PlanTask], Predictor]
    """Returns the predictor of a task; whatever is heavy to import is imported here, not with the module.

    Raises ValueError with one line where the table or the kept models do not suffice.
    """
    needs: Literal["transfer", "models"]
    """What it reads: the transfer table alone, or also the weights that `versatune reference` kept."""
    predicts_earlier: bool = False
    """Whether it can also predict the losses of the same run before its end, from the table up to there."""
    explain: str
    """How it predicts, as a clause that follows "the planner predicts"."""
    solve: Callable[[Any, Goal, Limits], np.ndarray] | None = None
    """Returns the best mixture [K] for a predictor of `make` exactly; None where it can only be searched."""
    source: str = ""
    """Paper, equation or page it comes from."""
    differences: str = ""
    """Where it differs from its source."""
