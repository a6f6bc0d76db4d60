"""Sums by domain and by example: means, clustered and paired standard errors, one vector for the all-reduce."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from versatune_ds.mixture.statistics import DomainStatistics, ExampleLosses


def losses(loss_sum_E, tokens_E, ids_E, num_domains=2):
    return ExampleLosses(
        loss_sum_E=np.array(loss_sum_E),
        num_loss_tokens_E=np.array(tokens_E),
        domain_ids_E=np.array(ids_E),
        num_domains=num_domains,
    )


def test_the_mean_is_sum_over_tokens_and_nan_for_an_empty_domain():
    statistics = DomainStatistics(
        loss_sum_K=[6.0, 0.0, 1.0], loss_sq_sum_K=[14.0, 0.0, 1.0], num_loss_tokens_K=[3, 0, 1]
    )
    assert np.array_equal(statistics.mean(), [2.0, np.nan, 1.0], equal_nan=True)
    # losses 1, 2, 3: variance 2/3, standard error sqrt(2/9)
    assert np.allclose(statistics.standard_error(), [np.sqrt(2) / 3, np.nan, 0.0], equal_nan=True)


def test_statistics_cannot_be_changed_in_place():
    one = DomainStatistics(loss_sum_K=[1.0, 2.0], loss_sq_sum_K=[1.0, 2.0], num_loss_tokens_K=[1, 2])
    with pytest.raises(ValueError, match="read-only"):
        one.loss_sum_K[0] = 5.0


def vector(statistics):
    columns = (statistics.loss_sum_K, statistics.loss_sq_sum_K, statistics.num_loss_tokens_K)
    return np.concatenate(columns).astype(np.float64)


def test_vectors_of_two_ranks_add_up_to_the_total():
    rank0 = DomainStatistics(loss_sum_K=[1.5, 0.0], loss_sq_sum_K=[2.0, 0.0], num_loss_tokens_K=[2, 0])
    rank1 = DomainStatistics(loss_sum_K=[0.5, 3.0], loss_sq_sum_K=[0.25, 9.0], num_loss_tokens_K=[1, 1])
    total = DomainStatistics.from_vector(vector(rank0) + vector(rank1))
    assert total.loss_sum_K.tolist() == [2.0, 3.0]
    assert total.num_loss_tokens_K.dtype == np.int64
    assert total.num_loss_tokens_K.tolist() == [3, 1]


def test_statistics_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="three vectors of one length"):
        DomainStatistics(loss_sum_K=[1.0], loss_sq_sum_K=[1.0, 2.0], num_loss_tokens_K=[1])


def test_a_long_example_counts_by_its_tokens():
    measured = losses([2.0, 12.0, 3.0], [2, 6, 3], [0, 0, 1])
    assert measured.mean().tolist() == [14.0 / 8.0, 1.0]


def test_the_standard_error_is_clustered_by_example():
    # Domain 0: mean 14/8 = 1.75; residuals 2 - 3.5 = -1.5 and 12 - 10.5 = 1.5; sqrt(2/1 * 4.5) / 8 = 0.375.
    measured = losses([2.0, 12.0, 3.0], [2, 6, 3], [0, 0, 1])
    assert np.allclose(measured.standard_error(), [0.375, np.nan], equal_nan=True)


def test_a_paired_change_ignores_what_makes_an_example_hard():
    tokens, ids = [4, 4, 4], [0, 0, 0]
    before = losses([4.0, 20.0, 40.0], tokens, ids, 1)
    after = losses([3.0, 19.0, 39.0], tokens, ids, 1)
    assert after.standard_error()[0] > 1.0
    assert after.change_standard_error(before)[0] == pytest.approx(0.0, abs=1e-12)


def test_the_paired_error_of_unequal_changes_by_hand():
    # Changes -1 and -3 over 2 tokens each: mean change -1; residuals 1 and -1; sqrt(2 * 2) / 4 = 0.5.
    before, after = losses([4.0, 8.0], [2, 2], [0, 0], 1), losses([3.0, 5.0], [2, 2], [0, 0], 1)
    assert after.change_standard_error(before)[0] == pytest.approx(0.5)


def test_other_examples_fall_back_to_the_unpaired_error():
    before, after = losses([4.0, 8.0], [2, 2], [0, 0], 1), losses([3.0, 5.0], [2, 3], [0, 0], 1)
    expected = np.hypot(before.standard_error(), after.standard_error())
    assert np.allclose(after.change_standard_error(before), expected)


def test_the_ratio_estimator_covers_the_spread_of_repeated_samples():
    rng = np.random.default_rng(0)
    means, errors = [], []
    for _ in range(400):
        tokens = rng.integers(5, 60, 50)
        sums = tokens * rng.normal(2.0, 0.4, 50)
        measured = losses(sums, tokens, np.zeros(50, dtype=int), 1)
        means.append(measured.mean()[0])
        errors.append(measured.standard_error()[0])
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.1)


@given(st.lists(st.tuples(st.floats(0, 50), st.integers(0, 9), st.integers(0, 1)), min_size=1, max_size=30))
def test_losses_of_ranks_that_fill_in_their_own_examples_add_up(examples):
    sums, tokens, ids = (np.array(column) for column in zip(*examples, strict=True))
    is_rank0 = np.arange(len(ids)) % 2 == 0
    rank0, rank1 = (losses(sums * mask, tokens * mask, ids) for mask in (is_rank0, ~is_rank0))
    total = losses(rank0.loss_sum_E + rank1.loss_sum_E, rank0.num_loss_tokens_E + rank1.num_loss_tokens_E, ids)
    assert np.array_equal(total.mean(), losses(sums, tokens, ids).mean(), equal_nan=True)
    assert total.num_loss_tokens().tolist() == losses(sums, tokens, ids).num_loss_tokens().tolist()


def test_a_domain_id_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"must lie in 0\.\.1"):
        losses([1.0], [1], [2])


def test_the_number_of_examples_for_a_standard_error_by_hand():
    # Residuals -2, 2, -2, 2 over 2 tokens each: sqrt(4 / 3 * 16) / 8 = 0.577; half of it needs four times as many.
    measured = losses([2.0, 6.0, 2.0, 6.0, 4.0], [2, 2, 2, 2, 2], [0, 0, 0, 0, 1])
    error = measured.standard_error()[0]
    assert error == pytest.approx(0.57735, abs=1e-5)
    assert measured.num_examples_for(error * 2, min_examples=1).tolist() == [1, 1]
    assert measured.num_examples_for(error * 1.2, min_examples=2).tolist() == [3, 1]  # 4 / 1.44 = 2.8
    assert measured.num_examples_for(error / 2, min_examples=2).tolist() == [4, 1]
    assert measured.num_examples_for(99.0, min_examples=3).tolist() == [3, 1]


def test_selected_examples_keep_their_losses():
    part = losses([4.0, 8.0, 3.0], [2, 4, 1], [0, 0, 1]).select(np.array([0, 2]))
    assert part.mean().tolist() == [2.0, 3.0]
    assert part.num_examples().tolist() == [1, 1]
