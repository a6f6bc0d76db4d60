"""Correct labels and shares by texts whose domains are known, and put the error of the correction into the intervals.

A labeller is calibrated on the recipe's rows; what a model writes is of other sources. With texts of other sources
whose domains the user gives (`versatune detect --labelled FILE`), the labels are calibrated again on them, and EM
(`estimate.py`) finds the shares from these labels. Black-box shift estimation is reported beside it: the shares
that, through the confusion matrix, give the observed mean label. The two should be close.

The known texts are a sample too: they are drawn again, by domain, and the shares found with each calibration; their
standard deviation is the error of the correction. What no calibration corrects shows in shares of mixtures of the known
texts, each half calibrated on the other (`reliability/source_error.py`).

Source: EM after calibration: Alexandari, Kundaje, Shrikumar 2020 (arXiv 1901.06852). Black-box shift estimation:
Lipton, Wang, Smola 2018 (arXiv 1802.03916), with soft labels, and shares that are never below 0.

Shape legend: **K** domains, **N** texts, **R** draws of the known texts.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import nnls

from versatune_ds.domains import DomainSet
from versatune_ds.knowledge.estimate import Estimate, Shares, shares_of
from versatune_ds.knowledge.label_classifier import Calibration, fit_calibration
from versatune_ds.knowledge.label_quality import quality_of
from versatune_ds.knowledge.labeller import Labeller
from versatune_ds.knowledge.reliability.source_error import LeftOutLabels, widened

MIN_TEXTS = 10
"""Known texts of every domain, unclear ones not counted, that a calibration needs."""

logger = logging.getLogger(__name__)

_NUM_DRAWS = 40
_SUM_WEIGHT = 100.0
"""How much an error of the shares' sum counts beside one of a mean label."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownLabels:
    """The labels that a labeller gave to texts whose domains are known."""

    labels_NK: np.ndarray
    domain_ids: list[int]

    def calibration(self, counts_N: np.ndarray | None = None) -> Calibration:
        """Return the calibration of these labels; `counts_N` is how often each text counts, by default once."""
        is_clear_N = self.labels_NK.sum(axis=1) > 0
        times_N = np.ones(len(self.domain_ids), dtype=np.int64) if counts_N is None else counts_N
        kept = np.repeat(np.arange(len(self.domain_ids)), np.where(is_clear_N, times_N, 0))
        return fit_calibration(log_labels(self.labels_NK[kept]), np.array(self.domain_ids)[kept])


class RecalibratedLabeller:
    """A labeller whose labels are calibrated again on known texts."""

    def __init__(self, labeller: Labeller, known: KnownLabels, *, texts: str) -> None:
        self.labeller, self.known = labeller, known
        self.calibration = known.calibration()
        labels_NK = _labels_of_halves(known)
        self.quality = quality_of(labels_NK, known.domain_ids, texts=texts)
        self.left_out = LeftOutLabels(
            labels_NK=labels_NK,
            ids_N=np.array(known.domain_ids),
            source_ids_N=np.zeros(len(known.domain_ids), dtype=np.int64),
            is_other_source_K=np.ones(labels_NK.shape[1], dtype=bool),
        )

    def label(self, texts: list[str]) -> np.ndarray:
        """Return the labels, float64 [N, K]; what is unclear stays so."""
        return recalibrated(self.labeller.label(texts), self.calibration)

    def describe(self) -> dict[str, Any]:
        """Return what prior.json records of the labeller."""
        return self.labeller.describe()


def recalibrated_labeller(labeller: Labeller, known: KnownLabels, *, texts: str) -> Labeller:
    """Return the labeller calibrated on known texts; where there are too few, as it was, with a warning."""
    is_clear_N = known.labels_NK.sum(axis=1) > 0
    num_clear_K = np.bincount(np.array(known.domain_ids)[is_clear_N], minlength=known.labels_NK.shape[1])
    fewest = int(num_clear_K.min())
    if fewest < MIN_TEXTS:
        logger.warning(
            "--labelled: %s: a domain has %d texts that are not unclear, so they do not correct the shares; give %d or "
            "more of every domain",
            texts,
            fewest,
            MIN_TEXTS,
        )
        return labeller
    return RecalibratedLabeller(labeller, known, texts=texts)


def corrected_estimate(
    estimate: Estimate,
    labeller: RecalibratedLabeller,
    labels_NK: np.ndarray,
    size_N: np.ndarray,
    *,
    prior_shift: bool,
    seed: int,
) -> Estimate:
    """Return the estimate with the error of the correction in its intervals; for the arguments see below."""
    errors = errors_of_correction(
        labeller.known, labeller.calibration, labels_NK, size_N, prior_shift=prior_shift, seed=seed
    )
    by_sequence, by_token = (
        widened(shares, error_K) for shares, error_K in zip((estimate.sequences, estimate.tokens), errors, strict=True)
    )
    return replace(estimate, sequences=by_sequence, tokens=by_token)


def describe_correction(labeller: RecalibratedLabeller, labels_NK: np.ndarray, domain_set: DomainSet) -> dict[str, Any]:
    """Return what prior.json records of the correction; the black-box shares are of sequences."""
    shares_K = black_box_shares(labels_NK.sum(axis=0), labeller.quality.confusion_KK)
    return {
        "method": "calibrated on the labelled texts",
        "black_box_shares": domain_set.to_dict(shares_K.round(4)),
        "labelled": labeller.quality.describe(domain_set),
    }


def log_labels(labels_NK: np.ndarray) -> np.ndarray:
    """Return the logarithms of labels, which are the scores that a calibration takes."""
    return np.log(np.maximum(labels_NK, 1e-9))


def recalibrated(labels_NK: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Return labels under another calibration; each row keeps its sum."""
    return labels_NK.sum(axis=1, keepdims=True) * calibration.probabilities(log_labels(labels_NK))


def black_box_shares(mean_K: np.ndarray, confusion_KK: np.ndarray) -> np.ndarray:
    """Return the shares, none below 0, whose mean label through the confusion matrix is nearest to the observed one.

    The shares are of what is labelled, as those by EM are: mean label and confusion matrix are both divided by their
    sums over the domains, which are below 1 where texts are unclear.

    Args:
        mean_K: Mean label of the sequences.
        confusion_KK: Mean label [true domain, domain]; every domain has texts that are not unclear.

    Example: if half of law's label goes to code and none of code's to law, a mean of (.25, .75) gives (.5, .5).
    """
    of_labelled_KK = confusion_KK / confusion_KK.sum(axis=1, keepdims=True)
    system = np.vstack([of_labelled_KK.T, np.full(len(mean_K), _SUM_WEIGHT)])
    shares_K, _ = nnls(system, np.append(mean_K / mean_K.sum(), _SUM_WEIGHT))
    return shares_K / shares_K.sum()


def errors_of_correction(
    known: KnownLabels,
    calibration: Calibration,
    labels_NK: np.ndarray,
    size_N: np.ndarray,
    *,
    prior_shift: bool,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the standard deviations [K] of the shares of sequences and of sizes over draws of the known texts.

    Args:
        known: The known texts' labels.
        calibration: The one that `labels_NK` have.
        labels_NK: Labels of the sequences.
        size_N: Tokens of every sequence.
        prior_shift: See `shares_of`.
        seed: Of the draws.
    """
    # softmax(s / t + b) has the logarithm s / t + b up to a constant, so the labels before are found from those after.
    before_NK = (log_labels(labels_NK) - calibration.bias_K) * calibration.temperature
    mass_N1 = labels_NK.sum(axis=1, keepdims=True)
    rng, ids_N = np.random.default_rng(seed), np.array(known.domain_ids)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for _ in range(_NUM_DRAWS):
        counts_N = np.zeros(len(ids_N), dtype=np.int64)
        for domain_id in np.unique(ids_N):
            places = np.flatnonzero(ids_N == domain_id)
            np.add.at(counts_N, rng.choice(places, size=len(places)), 1)
        drawn = known.calibration(counts_N)
        found.append(shares_of(mass_N1 * drawn.probabilities(before_NK), size_N, prior_shift=prior_shift))
    by_sequence_RK, by_size_RK = (np.stack(shares) for shares in zip(*found, strict=True))
    return by_sequence_RK.std(axis=0, ddof=1), by_size_RK.std(axis=0, ddof=1)


def spread_over_confused(shares: Shares, pairs: Sequence[tuple[int, int]]) -> Shares:
    """Return shares whose intervals allow each domain of a confused pair all and nothing of the pair's shares.

    Example: shares .3 and .2 with intervals up to .4 and .3 may each be anything from 0 to .7.
    """
    lower_K, upper_K = shares.lower_K.copy(), shares.upper_K.copy()
    for i, j in pairs:
        for this, other in ((i, j), (j, i)):
            lower_K[this] = 0.0
            upper_K[this] = min(1.0, upper_K[this] + shares.upper_K[other])
    return replace(shares, lower_K=lower_K, upper_K=upper_K)


def confused_pairs(confusion_KK: np.ndarray, *, least: float = 0.2) -> list[tuple[int, int]]:
    """Return the pairs of domains that a labeller cannot tell apart.

    Of a pair (i, j), a text of i must get at least `least` more probability for i than a text of j gets, and the same
    for j. A domain without known texts is in no pair.
    """
    own_K = np.diag(confusion_KK)
    gain_KK = own_K[:, None] - confusion_KK.T  # [i, j]: probability of i for texts of i, less that for texts of j
    num = len(own_K)
    return [(i, j) for i in range(num) for j in range(i + 1, num) if min(gain_KK[i, j], gain_KK[j, i]) < least]


def _labels_of_halves(known: KnownLabels) -> np.ndarray:
    """Return the recalibrated labels [N, K], each half of every domain calibrated on the other half."""
    ids_N = np.array(known.domain_ids)
    rank_N = np.zeros(len(ids_N), dtype=np.int64)
    for domain_id in np.unique(ids_N):
        places = np.flatnonzero(ids_N == domain_id)
        rank_N[places] = np.arange(len(places))
    labels_NK = np.zeros_like(known.labels_NK)
    for half in (0, 1):
        is_out_N = rank_N % 2 == half
        calibration = known.calibration((~is_out_N).astype(np.int64))
        labels_NK[is_out_N] = recalibrated(known.labels_NK[is_out_N], calibration)
    return labels_NK
