"""Shares and lifts of experts by domain, from counts of tokens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from versatune_ds.mixture.expert_shares import (
    ExpertCounts,
    expert_lifts,
    expert_shares,
    most_different_layer,
    specific_experts,
)

COUNTS = np.array(
    [
        [[6, 2, 1, 1], [4, 4, 1, 1]],  # law
        [[0, 10, 5, 5], [8, 8, 2, 2]],  # code
        [[3, 1, 3, 3], [2, 2, 3, 3]],  # art
        [[0, 0, 0, 0]] * 2,  # no tokens
    ]
)


def test_the_lift_of_an_expert_is_a_domains_share_over_the_mean_of_the_domains_that_have_tokens():
    shares_KLX = expert_shares(COUNTS)
    assert shares_KLX[0, 0].tolist() == [0.6, 0.2, 0.1, 0.1]
    assert np.isnan(shares_KLX[3]).all()
    lifts_KLX = expert_lifts(shares_KLX)
    assert lifts_KLX[:3, 0, 0] == pytest.approx([2.0, 0.0, 1.0])  # 0.6, 0 and 0.3, with a mean of 0.3
    assert expert_lifts(np.array([[[1.0, 0.0]]])).tolist() == [[[1.0, 0.0]]]  # an expert that nothing was sent to


def test_the_most_specific_experts_come_first_and_have_at_least_an_equal_share():
    law, code, art, nothing = specific_experts(COUNTS)
    assert [(found.layer, found.expert, found.share) for found in law] == [(0, 0, 0.6), (1, 0, 0.4), (1, 1, 0.4)]
    assert [found.lift for found in law] == pytest.approx([2.0, 0.4 / (1 / 3), 0.4 / (1 / 3)])
    assert (code[0].layer, code[0].expert, code[0].lift) == (0, 1, pytest.approx(0.5 / (0.8 / 3)))
    assert (art[0].layer, art[0].expert) == (1, 2)
    assert nothing == []
    assert [len(found) for found in specific_experts(COUNTS, num_each=1)] == [1, 1, 1, 0]


def test_the_layer_where_the_domains_differ_most_is_found_and_an_empty_table_has_the_first():
    assert most_different_layer(COUNTS) == 0
    assert most_different_layer(COUNTS[:, ::-1]) == 1
    assert most_different_layer(np.zeros((2, 3, 4))) == 0


@given(arrays(np.int64, (3, 2, 4), elements=st.integers(0, 50)))
def test_no_lift_of_an_expert_is_above_the_number_of_domains_and_the_first_one_is_at_least_1(counts_KLX):
    for counts_LX, found in zip(counts_KLX, specific_experts(counts_KLX), strict=True):
        assert len(found) <= 3
        assert all(0 < expert.lift <= 3 + 1e-9 and expert.share >= 0.25 - 1e-9 for expert in found)
        assert bool(found) == bool(counts_LX.any())


def test_the_file_of_expert_counts_is_read_back_and_anything_else_is_none():
    counts = ExpertCounts(domain_names=("law", "a/b"), counts_KLX=COUNTS[:2], first_step=3, last_step=9)
    back = ExpertCounts.from_dict(counts.to_dict())
    assert (back.domain_names, back.first_step, back.last_step) == (("law", "a/b"), 3, 9)
    assert back.counts_KLX.tolist() == COUNTS[:2].tolist()
    content = counts.to_dict()
    for wrong in ({}, {**content, "counts": []}, {**content, "counts": {"law": [[1], [1, 2]]}},
                  {**content, "first_step": None}, {**content, "counts": {"law": [[-1.0]]}}):  # fmt: skip
        assert ExpertCounts.from_dict(wrong) is None
