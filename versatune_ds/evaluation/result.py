"""The result of an evaluation, with standard errors, and the comparison of two results.

Losses and answers are kept by example, not as means. A change between two models is then measured on pairs, and its
error is that of the differences, far smaller than that of either model.

Shape legend: **K** domains, **Q** questions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from versatune_ds.domains import DomainSet
from versatune_ds.mixture.statistics import ExampleLosses

_Z_95 = 1.959964


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answers:
    """Which questions were answered right.

    Attributes:
        domain_set: Domains of the questions; one may have none.
        domain_id_Q: int64.
        is_right_Q: bool.
    """

    domain_set: DomainSet
    domain_id_Q: np.ndarray
    is_right_Q: np.ndarray

    def num_questions(self) -> np.ndarray:
        """Return the questions of each domain, int64 [K]."""
        return np.bincount(self.domain_id_Q, minlength=len(self.domain_set))

    def accuracy(self) -> np.ndarray:
        """Return the share of right answers [K], NaN for a domain without questions."""
        return self._mean(self.is_right_Q.astype(np.float64))

    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the bounds [K] of the 95 % interval of the accuracy, NaN without questions.

        Source: Wilson, J. Am. Stat. Assoc. 22 (1927): p = (x + z^2 / 2n +- z sqrt(x (1 - x) / n + z^2 / 4n^2)) /
        (1 + z^2 / n). It stays within 0 and 1 and is valid for few questions, where x +- 2 standard errors does not.
        """
        x_K = self.accuracy()
        with np.errstate(invalid="ignore", divide="ignore"):
            z2_per_n_K = _Z_95**2 / self.num_questions()
            half_K = np.sqrt(z2_per_n_K * (x_K * (1 - x_K) + z2_per_n_K / 4))
            middle_K = x_K + z2_per_n_K / 2
            return (middle_K - half_K) / (1 + z2_per_n_K), (middle_K + half_K) / (1 + z2_per_n_K)

    def change_from(self, before: Answers) -> tuple[np.ndarray, np.ndarray]:
        """Return the change of the accuracy [K] since another model's answers to the same questions, and its error.

        Raises:
            ValueError: If these are answers to other questions.
        """
        if not np.array_equal(self.domain_id_Q, before.domain_id_Q):
            raise ValueError("these answers are to different questions and cannot be compared")
        change_Q = self.is_right_Q.astype(np.float64) - before.is_right_Q
        change_K = self._mean(change_Q)
        with np.errstate(invalid="ignore", divide="ignore"):
            variance_K = self._mean(change_Q**2) - change_K**2
            return change_K, np.sqrt(np.maximum(variance_K, 0.0) / (self.num_questions() - 1))

    def _mean(self, values_Q: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.bincount(self.domain_id_Q, weights=values_Q, minlength=len(self.domain_set)) / np.where(
                self.num_questions() > 0, self.num_questions(), np.nan
            )

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return {domain: accuracy with interval} for domains with questions."""
        low_K, high_K = self.interval()
        columns = zip(self.domain_set, self.accuracy(), low_K, high_K, self.num_questions().tolist(), strict=True)
        return {
            name: {"accuracy": float(accuracy), "low": float(low), "high": float(high), "num_questions": count}
            for name, accuracy, low, high, count in columns
            if count
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """The result of one model on its evaluation data.

    Attributes:
        domain_set: Domains of the held-out examples.
        losses: The loss of every held-out example.
        num_bytes_K: int64, UTF-8 bytes of the text that bears loss.
        exact: Written answers, compared with the examples' own; None if not measured.
        choices: Multiple choice; None if not measured.
        tokenizer_digest: Losses per token compare only if it is equal.
    """

    domain_set: DomainSet
    losses: ExampleLosses
    num_bytes_K: np.ndarray
    exact: Answers | None
    choices: Answers | None
    tokenizer_digest: str

    def bits_per_byte(self) -> np.ndarray:
        """Return loss sum / (ln 2 * bytes) [K]: comparable between tokenizers; NaN where there is no text.

        The loss of special tokens (the end of a turn) is in the sum; it has no byte.
        """
        loss_sum_K = self.losses.sum_by_domain(self.losses.loss_sum_E)
        return loss_sum_K / (math.log(2) * np.where(self.num_bytes_K > 0, self.num_bytes_K, np.nan))

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return {domain: numbers}; None for a number without a value, no entry for one that was not requested."""
        mean_K, error_K, bits_K = self.losses.mean(), self.losses.standard_error(), self.bits_per_byte()
        num_examples_K = self.losses.sum_by_domain(self.losses.num_loss_tokens_E > 0)
        domains: dict[str, dict[str, Any]] = {
            name: {
                "loss": number(mean_K[k]),
                "loss_standard_error": number(error_K[k]),
                "perplexity": number(np.exp(mean_K[k])),
                "bits_per_byte": number(bits_K[k]),
                "num_examples": int(num_examples_K[k]),
                "num_loss_tokens": int(self.losses.num_loss_tokens()[k]),
                "num_bytes": int(self.num_bytes_K[k]),
            }
            for k, name in enumerate(self.domain_set)
        }
        for key, answers in (("exact_match", self.exact), ("choices", self.choices)):
            for name, values in (answers.to_dict() if answers else {}).items():
                domains.setdefault(name, {})[key] = values
        return domains


def retention(after: Evaluation, before: Evaluation) -> dict[str, dict[str, Any]]:
    """Return the change in every domain from one model to another; a positive loss change is forgotten knowledge.

    Losses per token and written answers are compared only if both models have the same tokenizer: with another one,
    other examples are too long to be questions. Bits per byte and multiple choice are always compared.
    """
    # Held-out losses.
    has_same_tokens = after.tokenizer_digest == before.tokenizer_digest
    bits_K = after.bits_per_byte() - before.bits_per_byte()
    changes: dict[str, dict[str, Any]] = {
        name: {"bits_per_byte_change": number(bits_K[k])} for k, name in enumerate(after.domain_set)
    }
    if has_same_tokens:
        loss_K, error_K = after.losses.mean() - before.losses.mean(), after.losses.change_standard_error(before.losses)
        for k, name in enumerate(after.domain_set):
            changes[name] |= {"loss_change": number(loss_K[k]), "loss_change_standard_error": number(error_K[k])}
    # Answers.
    for key, now, then in (
        ("exact_match", after.exact if has_same_tokens else None, before.exact),
        ("choices", after.choices, before.choices),
    ):
        if now is None or then is None:
            continue
        change_K, error_K = now.change_from(then)
        for k, name in enumerate(now.domain_set):
            values = {f"{key}_change": number(change_K[k]), f"{key}_change_standard_error": number(error_K[k])}
            changes.setdefault(name, {}).update(values)
    return changes


def number(value: float) -> float | None:
    """Return a plain number for JSON, None for NaN and infinities."""
    return float(value) if np.isfinite(value) else None


def mean_over_domains(domains: Mapping[str, Mapping[str, Any]], key: str) -> float | None:
    """Return the unweighted mean of a number over the domains that have it."""
    values = [numbers[key] for numbers in domains.values() if numbers.get(key) is not None]
    return sum(values) / len(values) if values else None
