"""Log changes of the measured runs, and how far a mixture lies from the trained ones."""

import numpy as np
import pytest
from transfer_tables import two_domain_table

from versatune_ds.mixture.planning.measured_changes import OwnRun, distance_to_nearest, log_changes


def test_the_distance_is_that_of_the_nearest_mixture_by_domain():
    trained_MK = np.array([[0.25, 0.75], [0.9, 0.1]])
    away_NK = distance_to_nearest(np.array([[0.5, 0.5], [0.9, 0.1]]), trained_MK)
    assert away_NK == pytest.approx(np.array([[np.log(2), np.log(1.5)], [0, 0]]))


def test_a_share_of_nothing_counts_as_a_ten_thousandth():
    away_NK = distance_to_nearest(np.array([[0.0, 1.0]]), np.array([[1e-6, 1.0]]))
    assert away_NK.tolist() == [[0, 0]]
    away_NK = distance_to_nearest(np.array([[0.0, 1.0]]), np.array([[0.01, 1.0]]))
    assert away_NK == pytest.approx(np.array([[np.log(100), 0]]))


def test_log_changes_are_those_at_the_end_of_each_run():
    table = two_domain_table()
    own = [OwnRun.of(table, k) for k in range(2)]
    changes = log_changes(table, own, rng=None)
    for i, source in enumerate(table.sources.values()):
        assert changes.single_KK[i] == pytest.approx(np.log(source.losses_SK[-1] / table.base_losses_K))
    assert changes.lowest_K == pytest.approx(np.diagonal(changes.single_KK))
    assert changes.mixed_MK.shape == (0, 2)
