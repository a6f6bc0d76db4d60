"""Measure a labeller on texts whose domains are known: accuracy, calibration error, confusion matrix.

The figures depend on which texts: those of files that the labeller was fitted on look better than what a model writes.
So every figure carries where its texts are from.

Shape legend: **K** domains, **N** texts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from versatune_ds.data.encoding.turns import is_unicode
from versatune_ds.domains import DomainSet, nearest_name
from versatune_ds.knowledge.label_texts import LabelledTexts
from versatune_ds.run_folder.json_lines import json_lines, missing_field
from versatune_ds.text_table import text_table

_NUM_BINS = 10
_EXPECTED_LINE = '{"text": "...", "domain": "..."}'


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelQuality:
    """How well labels fit the domains that are known; every domain counts the same, whatever its number of texts."""

    texts: str
    """Where the texts are from, in words."""
    accuracy: float
    """Share of the texts whose likeliest domain is right; an unclear text is wrong."""
    mean_probability: float
    """Mean probability of the right domain."""
    calibration_error: float
    """See `expected_calibration_error`."""
    confusion_KK: np.ndarray
    """Mean label [true domain, domain], with what is unclear in no column."""
    num_texts_K: np.ndarray

    def describe(self, domain_set: DomainSet) -> dict[str, Any]:
        """Return what prior.json records; a domain without texts is null in the confusion matrix."""
        rows = [domain_set.to_dict(row.round(4)) if np.isfinite(row).all() else None for row in self.confusion_KK]
        return {
            "texts": self.texts,
            "accuracy": round(self.accuracy, 4),
            "mean_probability": round(self.mean_probability, 4),
            "calibration_error": round(self.calibration_error, 4),
            "num_texts": domain_set.to_dict(self.num_texts_K),
            "confusion": dict(zip(domain_set, rows, strict=True)),
        }


def quality_of(labels_NK: np.ndarray, domain_ids: list[int], *, texts: str) -> LabelQuality:
    """Return how well labels fit; a domain without texts is left out of the means.

    Args:
        labels_NK: Probabilities [N, K]; a row sums to 1, or to less by what is unclear.
        domain_ids: The true domains.
        texts: Where the texts are from.
    """
    ids_N, num_domains = np.array(domain_ids), labels_NK.shape[1]
    num_texts_K = np.bincount(ids_N, minlength=num_domains)
    weights_N = equal_weights(ids_N)
    mass_N = labels_NK.sum(axis=1)
    is_right_N = (labels_NK.argmax(axis=1) == ids_N) & (mass_N > 0)
    sums_KK = np.zeros((num_domains, num_domains))
    np.add.at(sums_KK, ids_N, labels_NK)
    with np.errstate(invalid="ignore"):
        confusion_KK = sums_KK / np.where(num_texts_K > 0, num_texts_K, np.nan)[:, None]
    return LabelQuality(
        texts=texts,
        accuracy=float(weights_N @ is_right_N),
        mean_probability=float(weights_N @ labels_NK[np.arange(len(ids_N)), ids_N]),
        calibration_error=expected_calibration_error(labels_NK, ids_N),
        confusion_KK=confusion_KK,
        num_texts_K=num_texts_K,
    )


def equal_weights(ids_N: np.ndarray) -> np.ndarray:
    """Return a weight a text, summing to 1, that gives every domain that has texts the same total."""
    counts_K = np.bincount(ids_N)
    return 1.0 / (np.count_nonzero(counts_K) * counts_K[ids_N])


def expected_calibration_error(labels_NK: np.ndarray, ids_N: np.ndarray) -> float:
    """Return by how much the probability of the likeliest domain is off, on average over ten equal bins of it.

    Source: Guo et al. 2017 (arXiv 1706.04599), equation 3. Differences from the paper: every domain counts the same,
    and texts that are unclear are left out: their labels promise nothing.
    """
    mass_N = labels_NK.sum(axis=1)
    weights_N = equal_weights(ids_N) * (mass_N > 0)
    confidence_N = labels_NK.max(axis=1) / np.where(mass_N > 0, mass_N, 1.0)
    is_right_N = labels_NK.argmax(axis=1) == ids_N
    bins_N = np.minimum((confidence_N * _NUM_BINS).astype(int), _NUM_BINS - 1)
    gap_per_bin = np.bincount(bins_N, weights=weights_N * (confidence_N - is_right_N), minlength=_NUM_BINS)
    return float(np.abs(gap_per_bin).sum() / max(weights_N.sum(), 1e-12))


def read_labelled_texts(path: Path, *, domain_set: DomainSet) -> LabelledTexts:
    """Return the texts of a JSON Lines file with `text` and `domain`.

    Raises:
        ValueError: If the file is missing, a line is not as expected, or a domain has no text.
    """
    if not path.is_file():
        raise ValueError(f"--labelled: {path}: no such file; expected JSON Lines of text and domain")
    found = LabelledTexts(texts=[], domain_ids=[])
    for line in json_lines(path):
        values = line.value
        where = f"--labelled: {path}:{line.number}"
        if values is None:
            raise ValueError(f"{where}: no JSON object; expected {_EXPECTED_LINE}")
        if problem := missing_field(values, ("text", "domain")):
            raise ValueError(f"{where}: {problem}; expected {_EXPECTED_LINE}")
        text, domain = values["text"], values["domain"]
        if not isinstance(text, str) or not text.strip() or not is_unicode(text):
            raise ValueError(f"{where}: text: {json.dumps(text)[:60]}: expected a text that is not empty")
        if domain not in domain_set.names:
            raise ValueError(f"{where}: domain: {domain!r}; {nearest_name(str(domain), domain_set.names)}")
        found.texts.append(text)
        found.domain_ids.append(domain_set.id_of(domain))
    missing = [name for i, name in enumerate(domain_set) if i not in found.domain_ids]
    if missing:
        raise ValueError(f"--labelled: {path}: no text of {', '.join(missing)}; give some of every domain")
    return found


def quality_table(values: dict[str, Any]) -> str:
    """Return the confusion matrix of prior.json's `labelled` as a table, with the figures above it."""
    names = list(values["confusion"])
    rows = []
    for name, row in values["confusion"].items():
        cells = [f"{row[other]:.2f}" if row else "-" for other in names]
        unclear = f"{max(0.0, 1.0 - sum(row.values())):.2f}" if row else "-"
        rows.append((name, *cells, unclear, f"{values['num_texts'][name]:,.0f}"))
    table = text_table(("true domain", *names, "unclear", "texts"), rows)
    return (
        f"labels of texts whose domain is known ({values['texts']}): accuracy {values['accuracy']:.3f}, probability of "
        f"the right domain {values['mean_probability']:.3f}, calibration error {values['calibration_error']:.3f}\n"
        f"{table}"
    )
