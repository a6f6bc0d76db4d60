"""What plan.json contains: made from what a search found.

Shape legend: **K** domains.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from versatune_ds.config import RunConfig
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.planning.front import FrontPoint, front
from versatune_ds.mixture.planning.goal import Goal
from versatune_ds.mixture.planning.limits import Limits
from versatune_ds.mixture.planning.plan_file import Plan
from versatune_ds.mixture.planning.predictor import Planner, PlanTask, Predicted, Predictor
from versatune_ds.mixture.planning.search import Found
from versatune_ds.mixture.planning.track import predicted_track
from versatune_ds.mixture.planning.transfer_table import TransferTable

_DIGITS = 6
_POINT = 0.01
"""One percentage point of the weights."""


def make_plan(
    found: Found,
    goal: Goal,
    *,
    planner: Planner,
    predictor: Predictor,
    task: PlanTask,
    limits: Limits,
    provenance: Mapping[str, Any],
) -> Plan:
    """Return the plan of a search, with its front and what one percentage point more of each domain would do."""
    names = task.table.domain_set
    effects_KK = _effects_of_one_point(predictor, found.weights_K, goal.base_losses_K)
    chosen = int(found.mixtures.add(found.weights_K)[0])
    points = front(found.mixtures, goal, limits=limits, labels={**found.named, "chosen": chosen})
    return Plan(
        weights=names.to_dict(found.weights_K),
        predicted=_predicted(found.predicted, goal, task.table),
        planner=planner.name,
        purpose=goal.purpose,
        target=None if goal.target_id is None else names.names[goal.target_id],
        bounds={name: float(bound) for name, bound in zip(names, goal.bounds_K, strict=True) if np.isfinite(bound)},
        worst_excess=round(found.worst_excess, _DIGITS),
        budget_steps=task.num_steps,
        front=[_front_entry(point, names) for point in points],
        effects={name: _known(effects_KK[k], task.table) for k, name in enumerate(names)},
        calibration=dict(predictor.calibration),
        provenance=provenance,
        track=_track(predicted_track(planner, task, weights_K=found.weights_K, end=found.predicted), task.table),
    )


def _track(track: Mapping[float, tuple[np.ndarray, np.ndarray]], table: TransferTable) -> list[dict[str, Any]]:
    """Return the points of the track as plan.json has them."""
    return [
        {"fraction": fraction, "losses": _known(losses_K, table), "stderrs": _known(stderrs_K, table)}
        for fraction, (losses_K, stderrs_K) in track.items()
    ]


def _effects_of_one_point(predictor: Predictor, weights_K: np.ndarray, base_losses_K: np.ndarray) -> np.ndarray:
    """Return the change of each loss for one more hundredth of the weight, as a share of the base model's, [K,K].

    The others give it up in proportion to their weights. A domain with more than .99 gives a hundredth up instead, and
    the sign is turned. Example: from (.5, .3, .2) one percentage point more of the first is (.51, .294, .196).

    Args:
        predictor: Asked for K + 1 mixtures in one batch.
        weights_K: The mixture that changes.
        base_losses_K: Held-out losses of the base model.
    """
    num_domains = len(weights_K)
    if num_domains == 1:
        return np.zeros((1, 1))
    signs_K = np.where(weights_K > 1.0 - _POINT, -1.0, 1.0)
    others_KK = np.where(np.eye(num_domains, dtype=bool), 0.0, np.maximum(weights_K, 1e-12))
    others_KK /= others_KK.sum(axis=1, keepdims=True)
    moved_KK = weights_K + _POINT * signs_K[:, None] * (np.eye(num_domains) - others_KK)
    losses = predictor.predict(np.concatenate([weights_K[None], moved_KK])).losses_NK
    return signs_K[:, None] * (losses[1:] - losses[0]) / base_losses_K


def _front_entry(point: FrontPoint, domain_set: DomainSet) -> dict[str, Any]:
    """Return a point of the front as plan.json has it."""
    return {
        "weights": domain_set.to_dict(np.round(point.weights_K, _DIGITS)),
        "mean": round(point.mean, _DIGITS),
        "worst": round(point.worst, _DIGITS),
        "worst_domain": domain_set.names[point.worst_id],
        "label": point.label,
    }


def _predicted(predicted: Predicted, goal: Goal, table: TransferTable) -> dict[str, dict[str, float]]:
    columns = {
        "loss": predicted.losses_NK[0],
        "stderr": predicted.stderrs_NK[0],
        "base": goal.base_losses_K,
        "change": predicted.losses_NK[0] - goal.base_losses_K,
    }
    by_key = {key: _known(values_K, table) for key, values_K in columns.items()}
    return {name: {key: by_key[key][name] for key in columns} for name in by_key["loss"]}


def _known(values_K: np.ndarray, table: TransferTable) -> dict[str, float]:
    """Return rounded numbers of the measured domains."""
    rounded = table.domain_set.to_dict(np.round(values_K, _DIGITS))
    return {name: value for name, value in rounded.items() if np.isfinite(value)}


def plan_provenance(
    config: RunConfig, table: TransferTable, *, path: Path, found: Found, goal: Goal, limits: Limits
) -> dict[str, Any]:
    """Return what a plan depends on, with the date."""
    return {
        "transfer": {
            "file": str(path),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            **{key: table.provenance[key] for key in ("date", "seed") if key in table.provenance},
        },
        **{key: table.provenance[key] for key in ("digests", "model") if key in table.provenance},
        "search": {
            "seed": config.run.seed,
            "num_mixtures": len(found.mixtures),
            "floor": float(limits.lower_K.min()),
            "cap": float(limits.upper_K.max()),
        },
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "version": metadata.version("versatune_ds"),
    }
