"""What a detection found, and how: filled by `detect.py`, written into prior.json by `detect_recipe.py`.

Shape legend: **K** domains, **N** sequences.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from versatune_ds.domains import DomainSet
from versatune_ds.knowledge.base_model import BaseModel
from versatune_ds.knowledge.estimate import Estimate, Shares
from versatune_ds.knowledge.likelihood import Likelihood
from versatune_ds.knowledge.precision import Precision
from versatune_ds.knowledge.sequences import DrawnSequence


@dataclass(kw_only=True, slots=True)
class Detection:
    """What was found, and how, as prior.json records it."""

    domain_set: DomainSet
    base_model: BaseModel
    tokenizer_digest: str
    weight_unit: str
    """`tokens` or `examples`: what the weights are shares of."""
    method: str
    """`generation`, `likelihood` or `both`."""
    folder: Path
    """Where the sequences are kept."""
    likelihood: Likelihood | None = None
    """How well the model predicts each domain; None with the method `generation`."""
    labeller: dict[str, Any] = field(default_factory=dict)
    sequences: list[DrawnSequence] = field(default_factory=list)
    rounds: list[np.ndarray] = field(default_factory=list)
    """The weights [K] after every round."""
    is_converged: bool = False
    """Whether the intervals are as narrow as `detect.interval`, or the last round changed less than `detect.tol`."""
    precision: Precision | None = None
    estimate: Estimate | None = None
    labels_NK: np.ndarray | None = None
    """Labels of the sequences, [N, K]."""

    @property
    def shares(self) -> Shares:
        """Return the shares that become the weights: of what the model wrote, where it wrote anything."""
        if self.estimate is None:
            assert self.likelihood is not None, "one of the methods found shares"
            return self.likelihood.shares
        return self.estimate.tokens if self.weight_unit == "tokens" else self.estimate.sequences

    def _num_unclear(self) -> dict[str, int]:
        """Return how many sequences look like no domain, where the labeller can say so."""
        if "screen" not in self.labeller or self.labels_NK is None:
            return {}
        labels = zip(self.labels_NK, self.sequences, strict=True)
        return {"unclear": sum(not label_K.any() and not sequence.is_empty for label_K, sequence in labels)}

    def rates(self) -> dict[str, float]:
        """Return which shares of the sequences are unparsed, unclear, empty, repetitive, duplicate and cut off."""
        assert self.estimate is not None, "the last round made it"
        texts = [sequence.text for sequence in self.sequences if not sequence.is_empty]
        counts = {
            "empty": sum(sequence.is_empty for sequence in self.sequences),
            "repetitive": sum(sequence.is_repetitive for sequence in self.sequences),
            "duplicate": len(texts) - len(set(texts)),
            "cut": sum(sequence.is_cut for sequence in self.sequences),
        }
        counts = {**self._num_unclear(), **counts}
        return {
            "unparsed": self.estimate.unparsed_rate,
            **{name: count / len(self.sequences) for name, count in counts.items()},
        }
