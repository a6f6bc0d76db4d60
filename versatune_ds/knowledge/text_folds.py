"""Divide texts so that each is scored by a fit that saw neither it nor its source.

Texts of one file resemble each other in ways that have nothing to do with their domain: a form of question, a layout.
A classifier learns these too, and looks better on rows it has not seen of files it has. So complete files are left out.
A domain of one file is divided by k-means of its vectors instead: what is left out then differs in content, though not
in source.

Shape legend: **N** texts, **D** dimensions of a vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans

MAX_FOLDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFolds:
    """Which fit leaves out which text."""

    fold_N: np.ndarray
    """Number of the fold that leaves out each text, from 0."""
    num_folds: int
    is_of_other_file_N: np.ndarray
    """Whether the fold of a text leaves out all of its file, and its domain has other files."""


def folds_of(vectors_ND: np.ndarray, ids_N: np.ndarray, file_ids_N: np.ndarray, *, seed: int) -> TextFolds:
    """Return the folds of texts; every fold keeps texts of every domain.

    Args:
        vectors_ND: Vectors of the texts.
        ids_N: Their domains, 0 to K - 1.
        file_ids_N: Which of its domain's files each is from.
        seed: Of k-means.
    """
    fold_N = np.zeros(len(ids_N), dtype=np.int64)
    is_other_N = np.zeros(len(ids_N), dtype=bool)
    for domain_id in range(int(ids_N.max()) + 1):
        places = np.flatnonzero(ids_N == domain_id)
        groups = file_ids_N[places]
        is_several = len(np.unique(groups)) > 1
        if not is_several:
            groups = _clusters(vectors_ND[places], seed=seed)
        fold_N[places] = assign_groups(groups)
        is_other_N[places] = is_several
    return TextFolds(fold_N=fold_N, num_folds=int(fold_N.max()) + 1, is_of_other_file_N=is_other_N)


def assign_groups(groups_N: np.ndarray) -> np.ndarray:
    """Return the fold of every text: groups stay together, the largest first into the fold with the fewest texts.

    Example: groups of 5, 3, 1 and 1 texts in at most 5 folds have folds 0, 1, 2 and 3.
    """
    groups, sizes = np.unique(groups_N, return_counts=True)
    in_fold = np.zeros(min(MAX_FOLDS, len(groups)), dtype=np.int64)
    folds: dict[int, int] = {}
    for i in np.argsort(-sizes, kind="stable"):
        fold = int(in_fold.argmin())
        folds[int(groups[i])] = fold
        in_fold[fold] += sizes[i]
    return np.array([folds[int(group)] for group in groups_N])


def _clusters(vectors_ND: np.ndarray, *, seed: int) -> np.ndarray:
    """Return a cluster for every vector; of vectors that are all the same, a number in turn."""
    num_clusters = min(MAX_FOLDS, len(np.unique(vectors_ND, axis=0)))
    if num_clusters < 2:
        return np.arange(len(vectors_ND)) % MAX_FOLDS
    return KMeans(n_clusters=num_clusters, n_init=1, random_state=seed).fit_predict(vectors_ND)
