"""A plan whose gain over equal shares may be the error of its prediction says so."""

import numpy as np
import pytest
from quadratic_predictor import quadratic

from versatune_ds.mixture.planning.goal import Goal
from versatune_ds.mixture.planning.predicted_mixtures import PredictedMixtures
from versatune_ds.mixture.planning.search import Found
from versatune_ds.planning.plan_gain import gain_note, objective_error


def noted(*, stderr, chosen=(0.25, 0.75), target_id=None):
    """Return the note on a plan; of equal shares the losses are 1.9 and 3.6, of (1/4, 3/4) 1.95 and 3.4."""
    mixtures = PredictedMixtures(quadratic(base=[2, 4], gain=[0.1, 0.2], stderr=stderr), num_domains=2)
    uniform, best = mixtures.add([[0.5, 0.5], chosen])
    goal = Goal(
        purpose="mean" if target_id is None else "target",
        base_losses_K=np.array([2.0, 4.0]),
        bounds_K=np.full(2, np.inf),
        target_id=target_id,
    )
    found = Found(
        weights_K=mixtures.weights_NK[best],
        predicted=mixtures.predicted_at(np.array([best])),
        mixtures=mixtures,
        named={"uniform": int(uniform)},
        worst_excess=0.0,
        worst_id=None,
    )
    return list(gain_note(found, goal))


def test_a_gain_in_the_mean_of_less_than_two_errors_is_said_in_percent():
    # The mean falls from 2.75 to 2.675: by .075, or 2.5 % of 3. Its error is .06 / sqrt(2) = .042, or 1.4 %.
    (note,) = noted(stderr=0.06)
    assert note.startswith(
        "The plan's gain over equal shares is within its own error: 2.5 % of the mean loss, with a standard error of "
        "1.4 %. Equal shares may do as well;"
    )


def test_a_gain_of_the_target_is_compared_with_the_error_of_the_target_alone():
    # The target falls by .2 of 4: 5 %; errors of .125 and .0625 nats are 3.1 % and 1.6 % of 4.
    (note,) = noted(stderr=0.125, target_id=1)
    assert "5.0 % of the target's loss, with a standard error of 3.1 %" in note
    assert noted(stderr=0.0625, target_id=1) == []


@pytest.mark.parametrize(
    ("stderr", "chosen"), [(0.05, (0.25, 0.75)), (0.0, (0.25, 0.75)), (0.5, (0.75, 0.25)), (0.5, (0.5, 0.5))]
)
def test_a_gain_beyond_its_error_or_none_at_all_is_not_noted(stderr, chosen):
    assert noted(stderr=stderr, chosen=chosen) == []


def test_the_error_of_the_mean_counts_measured_domains_alone():
    goal = Goal(purpose="mean", base_losses_K=np.array([2.0, 4.0, np.nan]), bounds_K=np.full(3, np.inf))
    predicted = quadratic(base=[2, 4, np.nan], gain=0).predict(np.array([[0.25, 0.25, 0.5]]))
    predicted.stderrs_NK[0] = [0.03, 0.04, np.nan]
    assert objective_error(goal, predicted) == pytest.approx(0.025)
