"""The schedule: the weights of a step never change once they are set."""

from __future__ import annotations

import json

import numpy as np
import pytest

from versatune_ds.mixture.schedule import Schedule


def schedule_of(*entries):
    schedule = Schedule(np.array([0.5, 0.5]))
    for step, weights in entries:
        schedule.append(step, np.array(weights))
    return schedule


def test_weights_apply_from_their_step_until_the_next_entry():
    schedule = schedule_of((3, [0.6, 0.4]), (10, [0.7, 0.3]))
    assert [schedule.weights_at(step)[0] for step in (0, 2, 3, 9, 10, 1000)] == [0.5, 0.5, 0.6, 0.6, 0.7, 0.7]


def test_earlier_entries_cannot_be_changed():
    schedule = schedule_of((3, [0.6, 0.4]))
    for step in (3, 1, 0):
        with pytest.raises(RuntimeError, match="steps must rise"):
            schedule.append(step, np.array([0.5, 0.5]))
    schedule.weights_at(3)[0] = 9.0
    assert schedule.weights_at(3).tolist() == [0.6, 0.4]


def test_weights_that_are_no_distribution_or_of_other_domains_are_refused():
    with pytest.raises(ValueError, match="no distribution"):
        schedule_of((3, [0.6, 0.6]))
    with pytest.raises(RuntimeError, match="3 weights for 2 domains"):
        schedule_of((3, [0.2, 0.3, 0.5]))


def test_a_saved_schedule_is_loaded_exactly():
    schedule = schedule_of((3, [1 / 3, 2 / 3]))
    again = Schedule(np.array([0.1, 0.9]))
    again.load_state_dict(json.loads(json.dumps(schedule.state_dict())))
    assert again.state_dict() == schedule.state_dict()
    again.append(4, np.array([0.5, 0.5]))


def test_a_schedule_of_other_domains_or_another_version_is_refused():
    with pytest.raises(RuntimeError, match="saved for 2 domains, this run has 3"):
        Schedule(np.full(3, 1 / 3)).load_state_dict(schedule_of().state_dict())
    with pytest.raises(RuntimeError, match="version"):
        schedule_of().load_state_dict({"version": 0})
