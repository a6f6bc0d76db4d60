"""plan.json: the mixture that `versatune plan` chose, what it predicts, and what the alternatives are.

`mixture.prior` takes the file as it takes a prior.json, since both have `weights`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from versatune_ds.json_file import is_finite_number, read_json_mapping
from versatune_ds.mixture.planning.goal import PURPOSES

_TODO = "write it again with versatune plan"
_MARKS = ("weights", "predicted", "planner")
"""Keys that a plan has, and no prior.json has all of."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """A mixture with the losses it should lead to."""

    weights: Mapping[str, float]
    """Share of each domain, in `weight_unit`; they sum to 1."""
    predicted: Mapping[str, Mapping[str, float]]
    """By measured domain: loss and stderr (nats per loss token), base (the base model's loss), change (loss - base)."""
    planner: str
    purpose: str
    """`for` in the file: mean, balanced or target."""
    bounds: Mapping[str, float]
    """Largest rise of a domain's loss that was asked for, as a share of the base model's; no entry for none."""
    budget_steps: int
    """Optimizer steps of the run that it predicts."""
    front: Sequence[Mapping[str, Any]] = ()
    """Points of mean loss against worst change: weights, mean, worst (a share), worst_domain, label or null."""
    target: str | None = None
    worst_excess: float = 0.0
    """How far the worst domain lies beyond its bound; 0 where all bounds are met."""
    effects: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By domain: what one percentage point more of it does to each loss, as a share of the base model's."""
    calibration: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    weight_unit: str = "tokens"
    track: Sequence[Mapping[str, Any]] | None = None
    """Predicted losses on the way: fraction of the steps (0 to 1), losses and stderrs by measured domain. Empty where
    the planner predicts the end alone; None in a file of an earlier version, which `steer` does not follow."""

    def to_dict(self) -> dict[str, Any]:
        """Return the content of plan.json."""
        return {
            "weights": dict(self.weights),
            "weight_unit": self.weight_unit,
            "predicted": {name: dict(values) for name, values in self.predicted.items()},
            "planner": self.planner,
            "for": self.purpose,
            "target": self.target,
            "bounds": dict(self.bounds),
            "worst_excess": self.worst_excess,
            "budget_steps": self.budget_steps,
            "front": [dict(point) for point in self.front],
            "effects": {name: dict(values) for name, values in self.effects.items()},
            "calibration": dict(self.calibration),
            "provenance": dict(self.provenance),
        } | ({} if self.track is None else {"track": [dict(point) for point in self.track]})

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], *, place: str) -> Plan:
        """Return the plan in the content of a plan.json.

        Args:
            content: As `to_dict` returns it.
            place: The file, perhaps after its config key; every message begins with it.

        Raises:
            ValueError: For a key that is missing or has another form; one line.
        """
        for key, is_valid, expected in _CHECKS:
            if not is_valid(content.get(key)):
                got = "nothing" if content.get(key) is None else str(content[key])[:60]
                raise ValueError(f"{place}: {key}: expected {expected}, got {got}; {_TODO}")
        others = set(content["predicted"]) - set(content["weights"])
        if others:
            raise ValueError(f"{place}: predicted: {', '.join(sorted(others))} has no weight; {_TODO}")
        return cls(
            purpose=content["for"],
            **{key: content[key] for key in ("weights", "predicted", "planner", "bounds", "budget_steps")},
            **{
                key: content[key]
                for key in (
                    "front", "target", "worst_excess", "effects", "calibration", "provenance", "weight_unit", "track"
                )
                if content.get(key) is not None
            },
        )  # fmt: skip


def _is_numbers(values: Any) -> bool:
    return isinstance(values, Mapping) and all(map(is_finite_number, values.values()))


def _is_predicted(values: Any) -> bool:
    keys = {"loss", "stderr", "base", "change"}
    return isinstance(values, Mapping) and all(_is_numbers(value) and keys <= set(value) for value in values.values())


def _is_front(values: Any) -> bool:
    return values is None or (isinstance(values, list) and all(isinstance(value, Mapping) for value in values))


def _is_track(values: Any) -> bool:
    """Return whether values are no track, an empty one, or points from fraction 0 to 1."""
    if values in (None, []):
        return True
    is_list = isinstance(values, list) and all(isinstance(point, Mapping) for point in values)
    if not is_list or not all(is_finite_number(point.get("fraction")) for point in values):
        return False
    if not all(_is_numbers(point.get(key)) for point in values for key in ("losses", "stderrs")):
        return False
    fractions = [point["fraction"] for point in values]
    return fractions == sorted(set(fractions)) and fractions[0] == 0 and fractions[-1] == 1


_CHECKS = (
    ("weights", lambda value: _is_numbers(value) and len(value) > 0, "{domain: number}"),
    ("predicted", _is_predicted, "{domain: {loss, stderr, base, change}}"),
    ("planner", lambda value: isinstance(value, str), "the name of a planner"),
    ("for", lambda value: value in PURPOSES, f"one of {', '.join(PURPOSES)}"),
    ("bounds", _is_numbers, "{domain: number}"),
    ("budget_steps", lambda value: type(value) is int and value > 0, "a positive whole number"),
    ("front", _is_front, "a list of points"),
    ("track", _is_track, "a list of {fraction, losses, stderrs} with fractions that rise from 0 to 1"),
    ("calibration", lambda value: value is None or isinstance(value, Mapping), "a mapping"),
    ("provenance", lambda value: value is None or isinstance(value, Mapping), "a mapping"),
)
"""Key, whether its value is valid, and what is expected."""


def is_plan(content: Any) -> bool:
    """Return whether the content of a file with weights is a plan rather than a prior.json."""
    return isinstance(content, Mapping) and all(key in content for key in _MARKS)


def is_plan_file(path: Path) -> bool:
    """Return whether a file is a plan; False where it is missing or corrupt, which whoever reads it reports."""
    try:
        return path.is_file() and is_plan(read_json_mapping(path, todo=_TODO))
    except (ValueError, OSError):
        return False


def read_plan(path: Path, *, what: str) -> Plan | None:
    """Return the plan in a file with weights; None where the file is a prior.json, missing or corrupt.

    Whoever reads the weights reports a file that is missing or corrupt.

    Args:
        path: The file of `mixture.prior`.
        what: Config key of the file; it opens every message.

    Raises:
        ValueError: If it is a plan with an entry that is not as expected; one line.
    """
    if not is_plan_file(path):
        return None
    return Plan.from_dict(read_json_mapping(path, opening=f"{what}: ", todo=_TODO), place=f"{what}: {path}")
