"""How far shares are off on texts of other sources: the sources are drawn again, not only the texts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from versatune_ds.domains import DomainSet
from versatune_ds.knowledge.estimate import Shares, estimate
from versatune_ds.knowledge.reliability.source_error import (
    LeftOutLabels,
    describe_source_error,
    errors_between_sources,
    widened,
    with_source_error,
)


def left_out(labels, ids, sources):
    return LeftOutLabels(
        labels_NK=np.array(labels, dtype=float),
        ids_N=np.array(ids),
        source_ids_N=np.array(sources),
        is_other_source_K=np.array([True, False]),
    )


def test_half_widths_of_independent_errors_add_up_in_squares():
    shares = Shares(shares_K=np.array([0.5, 0.01]), lower_K=np.array([0.47, 0.0]), upper_K=np.array([0.53, 0.04]))
    found = widened(shares, np.array([0.04 / 1.96, 0.04 / 1.96]))
    assert found.lower_K == pytest.approx([0.45, 0.0])
    assert found.upper_K == pytest.approx([0.55, 0.06])


def test_texts_that_are_labelled_right_in_every_source_have_no_error():
    labels = np.eye(2)[[0, 0, 0, 1, 1, 1]]
    found = errors_between_sources(
        left_out(labels, [0, 0, 0, 1, 1, 1], [0, 1, 1, 0, 0, 1]), np.array([0.3, 0.7]), prior_shift=False, seed=0
    )
    assert found == pytest.approx([0.0, 0.0])


def test_a_source_of_which_a_tenth_is_taken_for_the_other_domain_costs_what_the_module_says():
    first = np.tile([[0.9, 0.1]], (10, 1))  # source 0 of domain 0; every text alike, so drawing texts adds nothing
    labels = np.concatenate([first, np.eye(2)[[0] * 10 + [1] * 10]])
    known = left_out(labels, [0] * 20 + [1] * 10, [0] * 10 + [1] * 10 + [0] * 10)
    found = errors_between_sources(known, np.array([0.5, 0.5]), prior_shift=False, seed=0)
    assert found == pytest.approx(np.full(2, np.sqrt(0.05**2 / 2)), rel=0.15)  # 200 mixtures, half of each source


def test_sources_that_differ_give_a_larger_error_than_the_same_texts_as_one_source():
    labels = np.concatenate([np.tile([[0.5, 0.5]], (30, 1)), np.eye(2)[[0] * 30 + [1] * 60]])
    ids = [0] * 60 + [1] * 60
    shares = np.array([0.4, 0.6])
    several = errors_between_sources(
        left_out(labels, ids, [0] * 30 + [1] * 30 + [0] * 60), shares, prior_shift=False, seed=0
    )
    one = errors_between_sources(left_out(labels, ids, [0] * 120), shares, prior_shift=False, seed=0)
    assert several[0] > 1.3 * one[0]


def test_a_mixture_of_which_every_text_is_unclear_counts_as_quite_wrong():
    known = left_out(np.zeros((4, 2)), [0, 0, 1, 1], [0, 0, 0, 0])
    assert errors_between_sources(known, np.array([0.5, 0.5]), prior_shift=True, seed=0) == pytest.approx([1.0, 1.0])


def test_the_record_names_the_domains_tested_on_one_source_only():
    known = left_out(np.eye(2), [0, 1], [0, 0])
    described = describe_source_error(known, np.array([0.01, 0.02]), DomainSet(("law", "code")))
    assert described == {"error": {"law": 0.01, "code": 0.02}, "one_source": ["code"]}


def test_intervals_hold_the_truth_where_the_model_writes_like_a_source_that_was_not_seen():
    """Sources of two domains differ in how often their texts are misread; the model writes like one more of them."""
    rng = np.random.default_rng(0)
    held, held_before = 0, 0
    for seed in range(40):
        rights = rng.uniform(0.6, 1.0, size=(2, 9))  # probability of a right label, by domain and source; 8 are known
        ids, sources = np.repeat([0, 1], 320), np.tile(np.repeat(np.arange(8), 40), 2)
        is_right = rng.random(640) < rights[ids, sources]
        known = left_out(np.eye(2)[np.where(is_right, ids, 1 - ids)] * 0.6 + 0.2, ids, sources)
        truth = rng.random(800) < 0.3
        is_right = rng.random(800) < rights[truth.astype(int), 8]
        drawn = np.eye(2)[np.where(is_right, truth, ~truth).astype(int)] * 0.6 + 0.2
        before = estimate(drawn, np.ones(800), prior_shift=True, seed=seed, num_draws=100)
        found, *_ = with_source_error(before, known, prior_shift=True, seed=seed)
        held += found.sequences.lower_K[1] <= 0.3 <= found.sequences.upper_K[1]
        held_before += before.sequences.lower_K[1] <= 0.3 <= before.sequences.upper_K[1]
    assert held >= 36
    assert held_before <= 28


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.integers(0, 2)), min_size=1, max_size=12))
def test_an_interval_never_shrinks_and_stays_between_zero_and_one(rows):
    labels = [[share, 1 - share] for share, _, _ in rows] + [[0.8, 0.2], [0.3, 0.7]]
    known = left_out(labels, [int(is_second) for _, is_second, _ in rows] + [0, 1], [s for *_, s in rows] + [0, 0])
    before = estimate(np.eye(2)[[0, 0, 1]], np.ones(3), prior_shift=True, seed=0, num_draws=20)
    found, *_ = with_source_error(before, known, prior_shift=True, seed=0)
    for wide, narrow in ((found.sequences, before.sequences), (found.tokens, before.tokens)):
        assert np.all((wide.lower_K >= 0) & (wide.lower_K <= narrow.lower_K + 1e-12))
        assert np.all((narrow.upper_K - 1e-12 <= wide.upper_K) & (wide.upper_K <= 1))
        assert wide.shares_K.tolist() == narrow.shares_K.tolist()
