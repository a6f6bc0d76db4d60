"""Which experts of a mixture of experts serve which domain: shares and lifts from counts of tokens.

A lift compares a domain's share of an expert with the mean share of all domains, each domain counting once, whatever
its weight in the mixture: 1 where the expert is nothing special to the domain, K where it serves that domain alone.

Shape legend: **K** domains, **L** layers with experts, **X** experts of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExpertCounts:
    """Tokens that each expert got, by domain and layer, in some steps of a run: the content of experts.json."""

    domain_names: tuple[str, ...]
    counts_KLX: np.ndarray
    """A token counts for every expert it was sent to."""
    first_step: int
    """The first of the steps: after a resume, the first one since."""
    last_step: int

    def to_dict(self) -> dict[str, Any]:
        """Return the content for JSON."""
        counts = dict(zip(self.domain_names, self.counts_KLX.astype(int).tolist(), strict=True))
        return {"first_step": self.first_step, "last_step": self.last_step, "counts": counts}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ExpertCounts | None:
        """Return the counts of such a content; None where it is not one."""
        try:
            counts_KLX = np.array(list(content["counts"].values()), dtype=np.float64)
            steps = {"first_step": int(content["first_step"]), "last_step": int(content["last_step"])}
        except (AttributeError, KeyError, TypeError, ValueError):
            return None
        if counts_KLX.ndim != 3 or not counts_KLX.size or not (np.isfinite(counts_KLX) & (counts_KLX >= 0)).all():
            return None
        return cls(domain_names=tuple(content["counts"]), counts_KLX=counts_KLX, **steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecificExpert:
    """An expert that serves a domain more than others."""

    layer: int
    """Among the layers with experts, from 0."""
    expert: int
    share: float
    """Of the domain's tokens in this layer."""
    lift: float


def expert_shares(counts_KLX: np.ndarray) -> np.ndarray:
    """Return each expert's share of a domain's tokens in its layer, float64 [K, L, X]; NaN for a domain without any."""
    totals_KL1 = counts_KLX.sum(axis=2, keepdims=True).astype(np.float64)
    return counts_KLX / np.where(totals_KL1 > 0, totals_KL1, np.nan)


def expert_lifts(shares_KLX: np.ndarray) -> np.ndarray:
    """Return each share divided by the mean share of the domains that have tokens, [K, L, X]; 0 for an unused expert.

    Example: of three domains law sends 0.6 of its tokens to an expert and the others 0 and 0.3: 0.6 / 0.3 = 2.
    """
    is_known_KLX = np.isfinite(shares_KLX)
    num_known_LX = np.maximum(is_known_KLX.sum(axis=0), 1)
    mean_LX = np.where(is_known_KLX, shares_KLX, 0.0).sum(axis=0) / num_known_LX
    return np.divide(shares_KLX, mean_LX, out=np.zeros_like(shares_KLX), where=mean_LX > 0)


def specific_experts(counts_KLX: np.ndarray, *, num_each: int = 3) -> list[list[SpecificExpert]]:
    """Return, for each domain, the experts with the largest lift, largest first; none for a domain without tokens.

    Only experts with at least an equal share of the domain's tokens (1 / X): of the others a few tokens decide.
    """
    shares_KLX = expert_shares(counts_KLX)
    lifts_KLX = np.where(shares_KLX >= (1 - 1e-9) / shares_KLX.shape[2], expert_lifts(shares_KLX), -1.0)
    found = []
    for shares_LX, lifts_LX in zip(shares_KLX, lifts_KLX, strict=True):
        order = np.argsort(-lifts_LX, axis=None, kind="stable")[:num_each]
        places = [np.unravel_index(place, lifts_LX.shape) for place in order if lifts_LX.flat[place] > 0]
        found.append(
            [
                SpecificExpert(
                    layer=int(layer),
                    expert=int(expert),
                    share=float(shares_LX[layer, expert]),
                    lift=float(lifts_LX[layer, expert]),
                )
                for layer, expert in places
            ]
        )
    return found


def most_different_layer(counts_KLX: np.ndarray) -> int:
    """Return the layer whose experts tell the domains apart best: the largest mean distance from the mean shares.

    The distance is half the sum of absolute differences: 0 where all domains use the experts alike.
    """
    shares_KLX = expert_shares(counts_KLX)
    known_KLX = shares_KLX[np.isfinite(shares_KLX).all(axis=(1, 2))]
    if not len(known_KLX):
        return 0
    return int(np.argmax(np.abs(known_KLX - known_KLX.mean(axis=0)).sum(axis=2).mean(axis=0)))
