"""Label texts by a classifier fitted on the recipe's own records: no other model, no network.

A share is a mean of probabilities, so they must be calibrated, on texts that the classifier was not fitted on. How well
they are is reported: accuracy and calibration error on texts used neither for fitting nor for calibration.

Words and pieces of words weighted by TF-IDF go into a multinomial logistic regression (scikit-learn). Every domain
counts the same, whatever its number of texts, so the probabilities assume equal shares; `estimate.py` moves them to
the shares that are found.

Shape legend: **K** domains, **N** texts.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline

from versatune_ds.knowledge.label_quality import equal_weights, quality_of
from versatune_ds.knowledge.label_texts import DividedTexts
from versatune_ds.knowledge.reliability.source_error import LeftOutLabels

logger = logging.getLogger(__name__)

_MAX_FEATURES = 100_000
_BIAS_PENALTY = 1e-3
"""Keeps the calibration's biases finite where the classes are separated without an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Calibrated probabilities from scores: softmax(scores / temperature + bias_K).

    Source: bias-corrected temperature scaling (Alexandari, Kundaje, Shrikumar 2020, arXiv 1901.06852, section 2.3),
    which they found the best partner of the EM correction for shares that differ from the fitted ones.
    """

    temperature: float
    bias_K: np.ndarray

    def probabilities(self, scores_NK: np.ndarray) -> np.ndarray:
        """Return float64 [N, K], each row summing to 1."""
        return softmax(scores_NK / self.temperature + self.bias_K, axis=1)


class ClassifierLabeller:
    """Label texts with a fitted and calibrated classifier.

    Attributes:
        accuracy: Share of the test texts whose likeliest domain is right, every domain counting the same.
        calibration_error: See `label_quality.expected_calibration_error`, on the test texts.
        confidence: Mean probability of the likeliest domain, on the test texts.
        left_out: Labels of the test texts, which are of the same files as those fitted on.
    """

    def __init__(self, texts: DividedTexts) -> None:
        """Fit on one part of the texts, calibrate on another, test on the third."""
        self._pipeline = _pipeline()
        self._pipeline.fit(texts.fit.texts, texts.fit.domain_ids)
        self._calibration = fit_calibration(self._scores(texts.calibrate.texts), np.array(texts.calibrate.domain_ids))
        probabilities_NK, test_ids_N = self.label(texts.test.texts), np.array(texts.test.domain_ids)
        quality = quality_of(probabilities_NK, texts.test.domain_ids, texts="other rows of the same files")
        self.accuracy, self.calibration_error = quality.accuracy, quality.calibration_error
        self.confidence = float(equal_weights(test_ids_N) @ probabilities_NK.max(axis=1))
        self.left_out = LeftOutLabels(
            labels_NK=probabilities_NK,
            ids_N=test_ids_N,
            source_ids_N=np.array(texts.test.file_ids or [0] * len(texts.test)),
            is_other_source_K=np.zeros(probabilities_NK.shape[1], dtype=bool),
        )
        self._num_rows = {"fit": len(texts.fit), "calibrate": len(texts.calibrate), "test": len(texts.test)}

    def label(self, texts: list[str]) -> np.ndarray:
        """Return the probability of every domain for every text, float64 [N, K]; they assume equal shares."""
        return self._calibration.probabilities(self._scores(texts))

    def describe(self) -> dict[str, Any]:
        """Return what prior.json records of this labeller."""
        return {
            "name": "classifier",
            "num_rows": self._num_rows,
            "accuracy": round(self.accuracy, 4),
            "calibration_error": round(self.calibration_error, 4),
            "confidence": round(self.confidence, 4),
            "temperature": round(self._calibration.temperature, 4),
        }

    def _scores(self, texts: list[str]) -> np.ndarray:
        """Return uncalibrated log probabilities, float64 [N, K]."""
        return np.asarray(self._pipeline.predict_log_proba(texts), dtype=np.float64)


def _pipeline() -> Pipeline:
    """Return features and classifier, not fitted yet."""
    words = TfidfVectorizer(
        token_pattern=r"(?u)\w+|[^\w\s]", ngram_range=(1, 2), sublinear_tf=True, min_df=2, max_features=_MAX_FEATURES
    )
    pieces = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, min_df=2, max_features=_MAX_FEATURES
    )
    # liblinear and saga shuffle; lbfgs is a function of the data alone, so the same texts give the same labels.
    classifier = LogisticRegression(C=10.0, class_weight="balanced", solver="lbfgs", max_iter=300)
    return make_pipeline(FeatureUnion([("words", words), ("pieces", pieces)]), classifier)


def fit_calibration(scores_NK: np.ndarray, ids_N: np.ndarray) -> Calibration:
    """Return the temperature and biases under which the true domains are likeliest, every domain counting the same.

    Args:
        scores_NK: Log probabilities of texts that the classifier was not fitted on.
        ids_N: Their true domains.
    """
    weights_N = equal_weights(ids_N)
    rows = np.arange(len(ids_N))

    def loss(parameters: np.ndarray) -> float:
        log_temperature, bias_K = parameters[0], parameters[1:]
        log_p_NK = log_softmax(scores_NK / np.exp(log_temperature) + bias_K, axis=1)
        return float(-weights_N @ log_p_NK[rows, ids_N] + _BIAS_PENALTY * np.sum(parameters**2))

    found = minimize(loss, np.zeros(1 + scores_NK.shape[1]), method="L-BFGS-B").x
    return Calibration(temperature=float(np.exp(found[0])), bias_K=found[1:] - found[1:].mean())
