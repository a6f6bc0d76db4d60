"""The track of a plan: from the base model to the predicted end, exact where runs were measured."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from transfer_tables import BASE_K, two_domain_table

from versatune_ds.mixture.planning.predictor import PlanTask
from versatune_ds.mixture.planning.track import predicted_track
from versatune_ds.mixture.planning.transfer import TRANSFER


def track_of(weights_K, *, planner=TRANSFER):
    task = PlanTask(table=two_domain_table(), num_steps=4, num_tokens=400, folder=Path())
    weights_K = np.array(weights_K, dtype=float)
    end = TRANSFER.make(task).predict(weights_K[None])
    return predicted_track(planner, task, weights_K=weights_K, end=end), end


def test_a_run_that_stops_halfway_has_the_measurements_up_to_there():
    law = two_domain_table().until(0.5).sources["law"]
    assert (law.steps_S.tolist(), law.tokens_S.tolist()) == ([0, 2], [0, 200])
    assert law.changes_SK.tolist() == [[0.0, 0.0], [-0.75, 0.25]]


def test_between_two_measurements_a_run_lies_on_a_straight_line():
    # Three quarters of 4 steps: halfway from step 2 to step 4.
    law = two_domain_table().until(0.75).sources["law"]
    assert (law.steps_S.tolist(), law.tokens_S.tolist()) == ([0, 2, 3], [0, 200, 300])
    assert law.changes_SK[-1].tolist() == [-0.875, 0.375]
    assert law.losses_SK[-1] == pytest.approx([1.125, 3.375])
    assert (law.num_examples, law.tokens_per_epoch) == (10, 1000)


def test_a_run_of_one_step_is_cut_to_one_step():
    source = two_domain_table().sources["law"]
    short = dataclasses.replace(
        source,
        **{key: getattr(source, key)[:2] for key in ("losses_SK", "changes_SK", "change_stderrs_SK")},
        steps_S=np.array([0, 1]),
        tokens_S=np.array([0, 100]),
    )
    assert short.until(0.25).steps_S.tolist() == [0, 1]


def test_the_track_of_one_domain_alone_is_its_own_run():
    # On law alone law is at 2 - .75 halfway and at 2 - 1 at the end; code is at 3 + .25 and 3 + .5.
    track, end = track_of([1, 0])
    assert list(track) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert track[0.0][0].tolist() == BASE_K.tolist()
    assert track[0.0][1].tolist() == [0.0, 0.0]
    assert track[0.5][0] == pytest.approx([1.25, 3.25])
    assert track[1.0][0] == pytest.approx([1.0, 3.5])
    assert track[1.0][0] is end.losses_NK[0] or np.array_equal(track[1.0][0], end.losses_NK[0])


def test_a_planner_that_predicts_the_end_alone_has_no_track():
    track, _ = track_of([0.5, 0.5], planner=dataclasses.replace(TRANSFER, predicts_earlier=False))
    assert track == {}
