"""Every text is left out of one fit, together with its file."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from versatune_ds.knowledge.text_folds import MAX_FOLDS, assign_groups, folds_of


def test_large_groups_are_put_into_the_emptiest_fold():
    groups = np.repeat([3, 0, 1, 2], [5, 3, 1, 1])
    assert assign_groups(groups).tolist() == [0] * 5 + [1] * 3 + [2, 3]


def test_a_domain_of_several_files_loses_whole_files_and_one_of_a_single_file_parts_of_it():
    ids = np.repeat([0, 1], 20)
    files = np.concatenate([np.repeat([0, 1], 10), np.zeros(20, dtype=int)])
    vectors = np.random.default_rng(0).normal(size=(40, 4))
    folds = folds_of(vectors, ids, files, seed=0)
    assert folds.is_of_other_file_N.tolist() == [True] * 20 + [False] * 20
    assert [set(folds.fold_N[start : start + 10].tolist()) for start in (0, 10)] == [{0}, {1}]
    assert folds.num_folds == MAX_FOLDS


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6)), max_size=60), st.booleans())
def test_every_fit_keeps_texts_of_every_domain_and_no_file_is_in_two_folds(pairs, is_same):
    pairs = [*pairs, (0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 0)]
    ids, files = (np.array(values) for values in zip(*pairs, strict=True))
    vectors = np.ones((len(ids), 3)) if is_same else np.random.default_rng(1).normal(size=(len(ids), 3))
    folds = folds_of(vectors, ids, files, seed=0)
    for fold in range(folds.num_folds):
        assert set(ids[folds.fold_N != fold]) == {0, 1, 2}
    for domain, file in {(d, f) for d, f in zip(ids.tolist(), files.tolist(), strict=True)}:
        of_file = (ids == domain) & (files == file)
        if folds.is_of_other_file_N[of_file].all():
            assert len(set(folds.fold_N[of_file].tolist())) == 1
