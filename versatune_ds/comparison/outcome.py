"""Turn one run's evaluation into the numbers that are compared.

Every change is relative to the base model on the same test examples, and positive for an improvement, so that
"forgotten" is a negative number everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

Domains = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The result of one run; None for what was not measured."""

    loss: float
    """Plain mean over domains of the test loss (nats per loss token)."""
    bits: float | None
    """The same in bits per byte of text, which models with different tokenizers share."""
    exact: float | None
    """Plain mean over domains of the share of answers written as in the examples."""
    choices: float | None
    """Plain mean over domains of the share of right choices."""
    worst: float
    """Relative fall of the loss in the domain where it fell least; negative: that domain was forgotten."""
    target: float | None
    """Relative fall of the loss in the target domain."""
    others: float | None
    """Plain mean over the other domains of the relative fall of the loss; negative: they degraded."""
    others_exact: float | None
    """The same of the exact answers, as a difference of shares."""

    def sentence(self) -> str:
        """Return the numbers that a run is judged by, as text."""
        text = f"mean loss {self.loss:.4f}, worst domain {100 * self.worst:+.1f} %"
        return text if self.target is None else f"{text}, target {100 * self.target:+.1f} %"


MEASURES = tuple(item.name for item in fields(Outcome))
SMALLER_IS_BETTER = frozenset({"loss", "bits"})
AS_PERCENT = frozenset(MEASURES) - SMALLER_IS_BETTER
"""Measures that are shares, and written in percent."""


def outcome(after: Domains, base: Domains, *, target: str | None) -> Outcome:
    """Return a run's numbers against the base model's.

    Worked example: law 2.0 -> 1.5 and code 1.0 -> 1.1 with target law: loss 1.3, worst -0.1, target 0.25, others -0.1.
    """
    falls = {name: loss_fall(after, base, name) for name in after if after[name].get("loss") is not None}
    others = [name for name in falls if name != target]
    exact_changes = [
        after[name]["exact_match"]["accuracy"] - base[name]["exact_match"]["accuracy"]
        for name in others
        if "exact_match" in after[name] and "exact_match" in base[name]
    ]
    return Outcome(
        loss=_mean([after[name]["loss"] for name in falls]),
        bits=_mean_bits(after, list(falls)),
        exact=_mean_of(after, "exact_match"),
        choices=_mean_of(after, "choices"),
        worst=min(falls.values()),
        target=None if target is None else falls[target],
        others=None if target is None else _mean([falls[name] for name in others]),
        others_exact=None if target is None or not exact_changes else _mean(exact_changes),
    )


def loss_fall(after: Domains, base: Domains, name: str) -> float:
    """Return the relative fall of a domain's test loss since the base model; negative where it rose."""
    return 1.0 - after[name]["loss"] / base[name]["loss"]


def _mean_bits(domains: Domains, names: list[str]) -> float | None:
    """Return the plain mean of bits per byte, None where a domain has none: results of early versions."""
    values = [domains[name].get("bits_per_byte") for name in names]
    return None if None in values else _mean(values)


def _mean_of(domains: Domains, key: str) -> float | None:
    """Return the plain mean over domains of an accuracy, None where there is none."""
    values = [numbers[key]["accuracy"] for numbers in domains.values() if key in numbers]
    return _mean(values) if values else None


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
