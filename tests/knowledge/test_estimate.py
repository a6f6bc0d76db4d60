"""From labels to shares: by hand, under prior shift, with intervals that include what is unparsed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from versatune_ds.knowledge.estimate import effective_number, estimate, shares_of

ONE = np.ones(4)


def test_shares_are_the_means_of_the_labels_by_sequence_and_by_token():
    labels = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.0, 1.0]])
    by_sequence, by_token = shares_of(labels, np.array([10.0, 20.0, 10.0, 10.0]), prior_shift=False)
    assert by_sequence.tolist() == pytest.approx([1.5 / 4, 2.5 / 4])
    assert by_token.tolist() == pytest.approx([20 / 50, 30 / 50])


def test_the_part_of_a_label_missing_to_one_counts_for_no_domain():
    labels = np.array([[1.0, 0.0], [0.0, 0.5], [0.0, 0.0], [0.0, 0.5]])
    by_sequence, _ = shares_of(labels, ONE, prior_shift=False)
    assert by_sequence.tolist() == pytest.approx([0.5, 0.5])


def test_an_error_is_raised_if_no_sequence_has_a_label():
    with pytest.raises(RuntimeError, match="no sequence has a label"):
        shares_of(np.zeros((4, 2)), ONE, prior_shift=True)


def overlapping_labels(shares, *, num, seed, distance=1.5):
    """Labels of points from two normal distributions, as a perfect classifier fitted with equal shares gives them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=num) + distance * (rng.random(num) < shares[1])
    log_odds = distance * x - distance**2 / 2
    second = 1 / (1 + np.exp(-log_odds))
    return np.stack([1 - second, second], axis=1)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.9])
def test_prior_shift_finds_the_shares_where_the_plain_mean_leans_towards_equal(share):
    labels = overlapping_labels((1 - share, share), num=20_000, seed=1)
    size = np.ones(len(labels))
    shifted, _ = shares_of(labels, size, prior_shift=True)
    plain, _ = shares_of(labels, size, prior_shift=False)
    assert shifted[1] == pytest.approx(share, abs=0.015)
    if share != 0.5:
        assert abs(plain[1] - share) > 0.05
        assert abs(plain[1] - 0.5) < abs(share - 0.5)


def test_at_the_end_of_prior_shift_the_shares_are_the_mean_of_the_shifted_labels():
    labels = overlapping_labels((0.8, 0.2), num=500, seed=2)
    shares, _ = shares_of(labels, np.ones(500), prior_shift=True)
    shifted = labels * shares
    assert (shifted / shifted.sum(axis=1, keepdims=True)).mean(axis=0) == pytest.approx(shares, abs=1e-5)


def test_certain_labels_are_not_shifted():
    labels = np.eye(3)[[0, 0, 1, 2]]
    shifted = shares_of(labels, np.arange(1.0, 5.0), prior_shift=True)
    plain = shares_of(labels, np.arange(1.0, 5.0), prior_shift=False)
    for a, b in zip(shifted, plain, strict=True):
        assert a == pytest.approx(b)


def test_unparsed_mass_may_belong_to_any_domain_so_it_widens_every_interval():
    labels = np.eye(2)[[0] * 60 + [1] * 20]
    parsed = estimate(labels, np.ones(80), prior_shift=False, seed=0)
    labels = np.concatenate([labels, np.zeros((20, 2))])
    found = estimate(labels, np.ones(100), prior_shift=False, seed=0)
    assert found.unparsed_rate == pytest.approx(0.2)
    assert found.sequences.shares_K == pytest.approx(parsed.sequences.shares_K)
    assert found.sequences.lower_K[0] <= 0.6
    assert found.sequences.upper_K[0] >= 0.8
    assert found.sequences.lower_K[1] <= 0.2
    assert found.sequences.upper_K[1] >= 0.4


def test_intervals_are_as_wide_as_a_binomial_share_scatters_and_the_same_for_the_same_seed():
    labels = np.eye(2)[[0] * 300 + [1] * 100]
    found = estimate(labels, np.ones(400), prior_shift=False, seed=3)
    half_width = (found.tokens.upper_K[0] - found.tokens.lower_K[0]) / 2
    assert half_width == pytest.approx(1.96 * np.sqrt(0.75 * 0.25 / 400), rel=0.1)
    again = estimate(labels, np.ones(400), prior_shift=False, seed=3)
    assert again.tokens.lower_K.tolist() == found.tokens.lower_K.tolist()


@pytest.mark.parametrize("prior_shift", [False, True])
def test_a_domain_never_seen_among_a_hundred_sequences_may_still_have_the_share_of_clopper_and_pearson(prior_shift):
    found = estimate(np.eye(2)[[0] * 100], np.ones(100), prior_shift=prior_shift, seed=0)
    assert found.sequences.shares_K.tolist() == pytest.approx([100.5 / 101, 0.5 / 101])
    assert found.sequences.upper_K.tolist() == pytest.approx([1.0, 0.0362167], abs=1e-6)
    assert found.sequences.lower_K.tolist() == pytest.approx([0.9637833, 0.0], abs=1e-6)
    assert found.tokens.upper_K[1] == pytest.approx(0.0362167, abs=1e-6)


def test_one_long_sequence_among_short_ones_leaves_room_for_a_large_share_of_tokens():
    size = np.array([1.0, 1.0, 2.0])
    found = estimate(np.eye(2)[[0, 0, 0]], size, prior_shift=False, seed=0)
    assert effective_number(size) == pytest.approx(16 / 6)
    assert found.sequences.upper_K[1] == pytest.approx(1 - 0.025 ** (1 / 3))
    assert found.tokens.upper_K[1] == pytest.approx(1 - 0.025 ** (6 / 16))


def test_the_interval_of_a_domain_never_seen_includes_the_unparsed_mass():
    labels = np.concatenate([np.eye(2)[[0] * 80], np.zeros((20, 2))])
    found = estimate(labels, np.ones(100), prior_shift=False, seed=0)
    assert found.sequences.upper_K[1] == pytest.approx((1 - 0.025 ** (1 / 80)) * 0.8 + 0.2)


def test_about_95_percent_of_the_intervals_contain_the_truth():
    inside = 0
    for seed in range(60):
        labels = overlapping_labels((0.8, 0.2), num=400, seed=seed)
        found = estimate(labels, np.ones(400), prior_shift=True, seed=seed, num_draws=200)
        inside += found.sequences.lower_K[1] <= 0.2 <= found.sequences.upper_K[1]
    assert 51 <= inside <= 60


@given(
    st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=2, max_size=30),
    st.booleans(),
    st.integers(0, 100),
)
def test_shares_and_bounds_are_on_the_simplex_and_in_order(rows, prior_shift, seed):
    labels = np.array(rows) + 1e-3
    labels /= np.maximum(labels.sum(axis=1, keepdims=True), 1.0)
    size = np.random.default_rng(seed).integers(1, 50, len(labels)).astype(float)
    found = estimate(labels, size, prior_shift=prior_shift, seed=seed, num_draws=20)
    for shares in (found.sequences, found.tokens):
        assert shares.shares_K.sum() == pytest.approx(1)
        parsed = shares.shares_K * (1 - found.unparsed_rate) if shares is found.sequences else shares.lower_K
        assert np.all(shares.lower_K <= parsed + 1e-9)
        assert np.all(shares.lower_K <= shares.upper_K)
        assert np.all((shares.lower_K >= 0) & (shares.upper_K <= 1))
