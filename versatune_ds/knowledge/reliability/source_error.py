"""Measure how far shares are off on texts of other sources, and put that error into the intervals.

A bootstrap of the sequences shows how the shares scatter if as many are drawn again. It does not know of a labeller
that takes half of one source of law for code: more sequences give the same wrong share with a narrower interval. How
wrong a labeller is depends on the source, so the sources are what has to be drawn again.

Mixtures with the detected shares are put together from texts that the labeller was not fitted on: of every domain one
source, drawn at random, and of that source its texts, drawn again. Their shares are detected in the same way. The root
mean square of the errors (bias and scatter) is added to the half-widths in squares.

Example: two sources of law, of one a tenth is taken for code, of the other nothing. At a share of law of .5 and none of
code misread, the errors of law are -.05 and 0, their root mean square .035, which adds +-.07 to the interval.

Not covered: a model that writes unlike all sources known. Where a domain has one file, the parts left out are parts of
it, and the interval holds for texts of that source only; `is_other_source_K` states which domains these are.

Source: ours. The bootstrap over groups is the cluster bootstrap (Davison and Hinkley 1997, section 3.8).

Shape legend: **K** domains, **N** texts, **R** mixtures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from versatune_ds.domains import DomainSet
from versatune_ds.knowledge.estimate import Estimate, Shares, shares_of_draws

NORMAL_95 = 1.96
"""Standard deviations from the middle of a normal distribution to either end of its 95 % interval."""

_NUM_MIXTURES = 200
_MIXTURES_AT_A_TIME = 50


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LeftOutLabels:
    """Labels of texts whose domains are known, by a fit and a calibration that did not see them."""

    labels_NK: np.ndarray
    ids_N: np.ndarray
    """Their domains."""
    source_ids_N: np.ndarray
    """Which of its domain's sources each text is from."""
    is_other_source_K: np.ndarray
    """Whether fit and calibration left out all of a text's source."""


@runtime_checkable
class TestedLabeller(Protocol):
    """A labeller that has labelled texts it was not fitted on."""

    left_out: LeftOutLabels

    def label(self, texts: list[str]) -> np.ndarray:
        """Return the probability of every domain for every text."""

    def describe(self) -> dict[str, Any]:
        """Return what prior.json records of this labeller."""


def errors_between_sources(
    left_out: LeftOutLabels, shares_K: np.ndarray, *, prior_shift: bool, seed: int
) -> np.ndarray:
    """Return the root mean square errors [K] of the shares of mixtures put together from texts left out.

    Args:
        left_out: Labels of the texts.
        shares_K: Shares of the mixtures.
        prior_shift: See `estimate.shares_of`.
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    squares_K = np.zeros(len(shares_K))
    for start in range(0, _NUM_MIXTURES, _MIXTURES_AT_A_TIME):
        num = min(_MIXTURES_AT_A_TIME, _NUM_MIXTURES - start)
        weights_RN = np.stack([_mixture_of_sources(left_out, shares_K, rng) for _ in range(num)])
        weights_RN = weights_RN[weights_RN @ left_out.labels_NK.sum(axis=1) > 0]  # all of its texts may be unclear
        squares_K += num - len(weights_RN)
        if not len(weights_RN):
            continue
        found_RK, _ = shares_of_draws(
            left_out.labels_NK, np.ones(len(left_out.ids_N)), weights_RN, prior_shift=prior_shift, start_K=shares_K
        )
        squares_K += np.square(found_RK - shares_K).sum(axis=0)
    return np.sqrt(squares_K / _NUM_MIXTURES)


def _mixture_of_sources(left_out: LeftOutLabels, shares_K: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return how much each text counts in a mixture of one source a domain, float64 [N]; together they count 1."""
    weights_N = np.zeros(len(left_out.ids_N))
    for k, share in enumerate(shares_K):
        of_domain = np.flatnonzero(left_out.ids_N == k)
        source = rng.choice(np.unique(left_out.source_ids_N[of_domain]))
        texts = of_domain[left_out.source_ids_N[of_domain] == source]
        np.add.at(weights_N, rng.choice(texts, size=len(texts)), share / len(texts))
    return weights_N


def with_source_error(
    estimate: Estimate, left_out: LeftOutLabels, *, prior_shift: bool, seed: int
) -> tuple[Estimate, np.ndarray, np.ndarray]:
    """Return the estimate with the error between sources in its intervals, and these errors, [K] by unit.

    Returns:
        The estimate, the errors of the shares of sequences, the errors of the shares of tokens.
    """
    errors = [
        errors_between_sources(left_out, shares.shares_K, prior_shift=prior_shift, seed=seed)
        for shares in (estimate.sequences, estimate.tokens)
    ]
    by_sequence, by_token = (
        widened(shares, error_K) for shares, error_K in zip((estimate.sequences, estimate.tokens), errors, strict=True)
    )
    return replace(estimate, sequences=by_sequence, tokens=by_token), errors[0], errors[1]


def widened(shares: Shares, error_K: np.ndarray) -> Shares:
    """Return shares whose 95 % intervals contain an independent error too: half-widths add up in squares.

    Example: a half-width of .03 and an error of .04 / 1.96 give .05.
    """
    extra_K = NORMAL_95 * error_K
    lower_K = shares.shares_K - np.hypot(shares.shares_K - shares.lower_K, extra_K)
    upper_K = shares.shares_K + np.hypot(shares.upper_K - shares.shares_K, extra_K)
    return replace(shares, lower_K=np.maximum(lower_K, 0.0), upper_K=np.minimum(upper_K, 1.0))


def describe_source_error(left_out: LeftOutLabels, error_K: np.ndarray, domain_set: DomainSet) -> dict[str, Any]:
    """Return what prior.json records of the error: by domain, and which domains it was measured on one source of."""
    one_source = [name for k, name in enumerate(domain_set) if not left_out.is_other_source_K[k]]
    return {"error": domain_set.to_dict(error_K.round(4)), "one_source": one_source}
