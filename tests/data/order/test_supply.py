"""The share of a capped domain goes to the others, and the end of all data is an error."""

from __future__ import annotations

import numpy as np
import pytest
from fake_shards import fake_domain

from versatune_ds.data.order.permutation import DomainOrder
from versatune_ds.data.order.supply import DataEndsError, available_weights, check_supply, draw_limits, epochs_at_end


def order(size: int, name: str = "law") -> DomainOrder:
    shards = fake_domain(0, [10] * size)
    return DomainOrder.of(name, seed=0, lengths=shards.lengths, loss_lengths=shards.loss_lengths)


def test_the_share_of_an_exhausted_domain_goes_to_the_others_in_proportion():
    left_K = available_weights(np.array([0.5, 0.3, 0.2]), draws_K=np.array([4, 0, 0]), limit_K=np.array([4, 9, 9]))
    assert left_K.tolist() == pytest.approx([0, 0.6, 0.4])


def test_running_out_of_all_data_raises_data_ends_error():
    with pytest.raises(DataEndsError, match="data ends: every domain with weight has reached max_epochs_per_domain"):
        available_weights(np.array([1.0, 0.0]), draws_K=np.array([4, 0]), limit_K=np.array([4, 9]))


def test_draw_limits_are_rounded_down_to_complete_examples():
    assert draw_limits([order(5), order(4)], max_epochs_per_domain=1.5).tolist() == [7, 6]


def test_an_empty_domain_with_weight_is_an_error_with_its_name():
    check_supply(np.array([0.0, 1.0]), orders=[order(0, "empty"), order(1)])
    with pytest.raises(ValueError, match=r"domain 'empty' has no examples but weight 0\.25"):
        check_supply(np.array([0.25, 0.75]), orders=[order(0, "empty"), order(1)])


def test_epochs_at_the_end_follow_from_weights_and_mean_lengths():
    epochs_K = epochs_at_end(
        np.array([0.5, 0.5, 0.0]), num_units=1000, mean_cost_K=np.array([10, 5, 1]), size_K=np.array([10, 200, 0])
    )
    assert epochs_K.tolist() == [5.0, 0.5, 0.0]
