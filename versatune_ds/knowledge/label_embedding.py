"""Label texts by a sentence encoder: against descriptions of the domains, and by a classifier of the recipe's own rows.

The two know different things: descriptions state what a domain is about and know nothing of texts, rows show texts of a
few sources. A label is their geometric mean. It is calibrated on texts of files that were left out of the fit, because
on texts of the same files every classifier is too sure of itself (see `text_folds.py`).

A text is *unclear* when it is less like every domain, descriptions and rows alike, than almost all texts of files left
out. Its label is 0 for every domain, so that it could be any domain's and widens every interval.

Shape legend: **K** domains, **N** texts, **D** dimensions of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import log_softmax, logsumexp
from sklearn.linear_model import LogisticRegression

from versatune_ds.domains import DomainSet
from versatune_ds.knowledge.domain_descriptions import Description, parts_of
from versatune_ds.knowledge.label_classifier import fit_calibration
from versatune_ds.knowledge.label_quality import LabelQuality, quality_of
from versatune_ds.knowledge.label_texts import DividedTexts, joined_texts
from versatune_ds.knowledge.reliability.source_error import LeftOutLabels
from versatune_ds.knowledge.text_encoder import TextEncoder
from versatune_ds.knowledge.text_folds import TextFolds, folds_of

_SHARPNESS = 20.0
"""Factor of a cosine in a log score: texts of one domain differ by about 1/20 in their cosines with a description."""
_FIT_STRENGTH = 150.0
"""C of the logistic regression times the number of rows: strongly regularised, because what else the rows have in
common is their sources. At 15,000 it is right about rows of the same files more often and about others less."""
_UNCLEAR_SHARE = 0.01
"""Share of the texts of files left out that counts as unclear."""
_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingModel:
    """What turns vectors into log scores of the domains."""

    parts: tuple[np.ndarray, ...]
    """Vectors of the parts of each domain's description, [parts, D]; K arrays."""
    classifier: LogisticRegression
    centres_KD: np.ndarray
    """Mean direction of each domain's rows."""

    def scores(self, vectors_ND: np.ndarray) -> np.ndarray:
        """Return the log of the geometric mean of both probabilities, not normalised, float64 [N, K]."""
        own_NK = np.asarray(self.classifier.predict_log_proba(vectors_ND), dtype=np.float64)
        return 0.5 * (own_NK + description_scores(vectors_ND, self.parts))

    def likeness(self, vectors_ND: np.ndarray) -> np.ndarray:
        """Return the largest cosine of each vector [N] with a part of a description or a centre of rows."""
        known = np.concatenate([*self.parts, self.centres_KD])
        return (vectors_ND @ known.T).max(axis=1)


def fit_embedding_model(
    vectors_ND: np.ndarray, domain_ids: np.ndarray, *, parts: tuple[np.ndarray, ...]
) -> EmbeddingModel:
    """Fit the classifier of a recipe's own rows; every domain counts the same, whatever its number of rows."""
    # lbfgs is a function of the data alone, so the same rows give the same labels.
    strength = _FIT_STRENGTH / len(vectors_ND)
    classifier = LogisticRegression(C=strength, class_weight="balanced", solver="lbfgs", max_iter=500)
    classifier.fit(vectors_ND, domain_ids)
    centres_KD = np.stack([vectors_ND[domain_ids == k].mean(axis=0) for k in range(len(parts))])
    centres_KD /= np.maximum(np.linalg.norm(centres_KD, axis=1, keepdims=True), 1e-12)
    return EmbeddingModel(parts=parts, classifier=classifier, centres_KD=centres_KD)


def description_scores(vectors_ND: np.ndarray, parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return log probabilities of the domains by their descriptions alone, float64 [N, K].

    A domain's score is the log of the mean of exp(20 cosine) over the parts of its description, so the nearest parts
    decide.
    """
    scores = [logsumexp(_SHARPNESS * (vectors_ND @ part.T), axis=1) - np.log(len(part)) for part in parts]
    return log_softmax(np.stack(scores, axis=1).astype(np.float64), axis=1)


class EmbeddingLabeller:
    """Label texts with an encoder, descriptions and rows.

    Attributes:
        quality: How well its labels fit texts of files left out where domains have several, else of the same files.
        left_out: Labels of all texts, each by a fit and a calibration that left out its file, or its part of the file.
    """

    def __init__(
        self, texts: DividedTexts, *, encoder: TextEncoder, descriptions: Sequence[Description], domain_set: DomainSet
    ) -> None:
        """Fit on all rows; calibrate and measure on texts of files that were left out of other fits."""
        self._encoder, self._descriptions, self._domain_set = encoder, descriptions, domain_set
        known = joined_texts(texts)
        vectors_ND, ids_N = encoder.encode(known.texts), np.array(known.domain_ids)
        parts = tuple(encoder.encode(parts_of(found.text)) for found in descriptions)
        self._model = fit_embedding_model(vectors_ND, ids_N, parts=parts)
        # Scores of every text by a fit that did not see its file.
        folds = folds_of(vectors_ND, ids_N, np.array(known.file_ids), seed=_SEED)
        scores_NK, likeness_N = np.zeros((len(ids_N), len(domain_set))), np.zeros(len(ids_N))
        for fold in range(folds.num_folds):
            is_out_N = folds.fold_N == fold
            model = fit_embedding_model(vectors_ND[~is_out_N], ids_N[~is_out_N], parts=parts)
            scores_NK[is_out_N] = model.scores(vectors_ND[is_out_N])
            likeness_N[is_out_N] = model.likeness(vectors_ND[is_out_N])
        self._least_likeness = float(np.quantile(likeness_N, _UNCLEAR_SHARE))
        self._calibration = fit_calibration(scores_NK, ids_N)
        self.quality = self._quality_of_folds(scores_NK, likeness_N, ids_N, folds)
        self.left_out = _left_out_labels(
            scores_NK, ids_N, folds, np.array(known.file_ids), is_clear_N=likeness_N >= self._least_likeness
        )
        self._num_rows = len(ids_N)

    def label(self, texts: list[str]) -> np.ndarray:
        """Return the probability of every domain for every text, float64 [N, K]; 0 for all where it is unclear."""
        vectors_ND = self._encoder.encode(texts)
        labels_NK = self._calibration.probabilities(self._model.scores(vectors_ND))
        return labels_NK * (self._model.likeness(vectors_ND) >= self._least_likeness)[:, None]

    def describe(self) -> dict[str, Any]:
        """Return what prior.json records of this labeller."""
        return {
            "name": "embedding",
            "encoder": self._encoder.name,
            "digest": self._encoder.digest,
            "num_rows": self._num_rows,
            "temperature": round(self._calibration.temperature, 4),
            "least_likeness": round(self._least_likeness, 4),
            "descriptions": {
                name: {"text": found.text, "origin": found.origin}
                for name, found in zip(self._domain_set, self._descriptions, strict=True)
            },
            "left_out": self.quality.describe(self._domain_set),
        }

    def _quality_of_folds(
        self, scores_NK: np.ndarray, likeness_N: np.ndarray, ids_N: np.ndarray, folds: TextFolds
    ) -> LabelQuality:
        """Return the quality on the texts of files left out, each half calibrated on the other.

        Where every domain is one file, the texts are of the same files as the fit; `texts` of the result states which.
        """
        is_second_N = np.arange(len(ids_N)) % 2 == 1
        labels_NK = np.zeros_like(scores_NK)
        for is_half_N in (is_second_N, ~is_second_N):
            calibration = fit_calibration(scores_NK[~is_half_N], ids_N[~is_half_N])
            labels_NK[is_half_N] = calibration.probabilities(scores_NK[is_half_N])
        labels_NK *= (likeness_N >= self._least_likeness)[:, None]
        is_other_N = folds.is_of_other_file_N
        of_all = bool(is_other_N.all())
        if not is_other_N.any():
            text = "parts of the same files that were left out: every domain is one file"
            return quality_of(labels_NK, ids_N.tolist(), texts=text)
        text = "files left out of the fit" + ("" if of_all else ", of the domains that have several")
        return quality_of(labels_NK[is_other_N], ids_N[is_other_N].tolist(), texts=text)


def _left_out_labels(
    scores_NK: np.ndarray, ids_N: np.ndarray, folds: TextFolds, file_ids_N: np.ndarray, *, is_clear_N: np.ndarray
) -> LeftOutLabels:
    """Return the labels of all texts, each fold's calibrated on the other folds."""
    labels_NK = np.zeros_like(scores_NK)
    for fold in range(folds.num_folds):
        is_out_N = folds.fold_N == fold
        calibration = fit_calibration(scores_NK[~is_out_N], ids_N[~is_out_N])
        labels_NK[is_out_N] = calibration.probabilities(scores_NK[is_out_N])
    return LeftOutLabels(
        labels_NK=labels_NK * is_clear_N[:, None],
        ids_N=ids_N,
        source_ids_N=file_ids_N,
        is_other_source_K=np.array([folds.is_of_other_file_N[ids_N == k].all() for k in range(scores_NK.shape[1])]),
    )
