"""One decision of the controller: what it saw, what it did, why, and a digest to verify it.

A decision is a JSON object with everything it depends on besides the recipe, so it can be broadcast, stored, explained
and replayed. Numbers survive the round trip exactly (shortest repr of float64).

Source: docs/method.md section 10.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from versatune_ds.domains import DomainSet

Number = float | int | None


def above_reference(loss: Number, reference: Number) -> float | None:
    """Return how far a loss lies above its reference in nats, at least 0; None where one of them is unknown."""
    return None if loss is None or reference is None else max(float(loss - reference), 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One decision, as `decisions.jsonl` stores it."""

    update: int
    """Number of the update; 0 is the measurement before training, where few policies move weights."""
    decided_at_step: int
    """Optimizer step after which the losses were measured."""
    effective_step: int
    """Optimizer step from which `weights_after` apply."""
    losses: Mapping[str, Mapping[str, Number]]
    """Domain to {mean, stderr, num_loss_tokens}; null where unknown or not a number."""
    signals: Mapping[str, Mapping[str, Number]]
    """Domain to {learnable_potential, forgetting_degree, ...}."""
    weights_before: Mapping[str, float]
    weights_after: Mapping[str, float]
    acted: tuple[str, ...]
    """Every safeguard that acted, with numbers, in order."""
    reason: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """Other inputs than losses: live control and supply caps; empty without any."""
    digest: str = ""
    """sha256 over the canonical JSON of all of the above."""

    @property
    def is_update(self) -> bool:
        """Whether it is an update: any decision but a measurement before training that left the weights unchanged."""
        return self.update > 0 or self.weights_after != self.weights_before

    def to_dict(self) -> dict[str, Any]:
        """Return the decision as plain JSON values, in the order of the fields."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return values | {"acted": list(self.acted)}

    def to_json(self) -> str:
        """Return the decision as one line of JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Decision:
        """Return the decision of `to_dict`.

        Raises:
            RuntimeError: If a field is missing or unknown.
        """
        known = {item.name for item in fields(cls)}
        required = known - {"inputs"}
        if not required <= set(values) <= known:
            raise RuntimeError(f"a decision has the fields {sorted(known)}, found {sorted(values)}")
        return cls(**{**values, "acted": tuple(values["acted"])})

    @classmethod
    def from_json(cls, line: str) -> Decision:
        """Return the decision of a line made by `to_json`; raise RuntimeError for any other line."""
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise RuntimeError(f"a decision must be one line of JSON: {error}") from None
        if not isinstance(values, dict):
            raise RuntimeError(f"a decision must be a JSON mapping, found {type(values).__name__}")
        return cls.from_dict(values)

    def computed_digest(self) -> str:
        """Return the sha256 hex digest of everything but `digest`."""
        values = self.to_dict()
        del values["digest"]
        canonical = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
        return hashlib.sha256(canonical.encode("ascii")).hexdigest()

    def verify(self) -> None:
        """Check the digest.

        Raises:
            RuntimeError: If it does not match: the decision was changed, or ranks disagree.
        """
        computed = self.computed_digest()
        if computed != self.digest:
            raise RuntimeError(
                f"decision of update {self.update} (step {self.decided_at_step}): digest {self.digest[:12]} does not "
                f"match its content ({computed[:12]}); the record was changed or ranks disagree; resume from the last "
                "complete checkpoint"
            )

    def weights_K(self, domain_set: DomainSet) -> np.ndarray:
        """Return `weights_after` in the order of the domains, float64 [K]."""
        return domain_set.from_dict(self.weights_after, what=f"decision of update {self.update}")


def by_domain(columns: Mapping[str, np.ndarray], *, domain_set: DomainSet) -> dict[str, dict[str, Number]]:
    """Return columns [K] as {domain: {column: number}}; integers stay integers, NaN and infinity become null."""
    rows = zip(*(_finite_or_none(column_K) for column_K in columns.values()), strict=True)
    return {name: dict(zip(columns, row, strict=True)) for name, row in zip(domain_set, rows, strict=True)}


def _finite_or_none(values_K: np.ndarray) -> list[Number]:
    numbers = values_K.tolist()
    return numbers if np.isfinite(values_K).all() else [n if math.isfinite(n) else None for n in numbers]
