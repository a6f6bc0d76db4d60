"""The schedule: the weights of a step never change once they are set."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_the_state_of_a_long_schedule_has_only_what_later_steps_need():
    schedule = schedule_of(*((step, [0.25, 0.75]) for step in range(10, 1000, 10)))
    state = schedule.state_dict(from_step=981)
    assert [step for step, _ in state["entries"]] == [980, 990]
    again = Schedule(np.array([0.5, 0.5]))
    again.load_state_dict(json.loads(json.dumps(state)))
    assert again.digest == schedule.digest
    assert again.weights_at(981).tolist() == [0.25, 0.75]
    with pytest.raises(RuntimeError, match="no weights for step 5; they are known from step 980 on"):
        again.weights_at(5)


def test_a_state_of_an_earlier_version_without_digest_gives_the_same_digest():
    schedule = schedule_of((3, [0.6, 0.4]), (10, [0.7, 0.3]))
    state = schedule.state_dict()
    del state["digest"]
    again = Schedule(np.array([0.1, 0.9]))
    again.load_state_dict(state)
    assert again.digest == schedule.digest


@given(st.lists(st.floats(0.01, 0.99), min_size=1, max_size=8), st.data())
def test_the_digest_depends_on_every_entry_and_survives_a_load_anywhere(shares, data):
    entries = [(5 * number + 1, [share, 1.0 - share]) for number, share in enumerate(shares)]
    whole = schedule_of(*entries)
    # Saved after any number of entries and loaded, it continues to the same digest.
    cut = data.draw(st.integers(0, len(entries)))
    first = schedule_of(*entries[:cut])
    loaded = Schedule(np.array([0.5, 0.5]))
    loaded.load_state_dict(first.state_dict(from_step=entries[cut - 1][0] if cut else 0))
    for step, weights in entries[cut:]:
        loaded.append(step, np.array(weights))
    assert loaded.digest == whole.digest
    # One step later, or one bit of one weight, makes another.
    changed = data.draw(st.integers(0, len(entries) - 1))
    step, (share, _) = entries[changed]
    for other in ((step + 1, [share, 1.0 - share]), (step, [np.nextafter(share, 1), 1.0 - np.nextafter(share, 1)])):
        assert schedule_of(*entries[:changed], other, *entries[changed + 1 :]).digest != whole.digest


def test_a_schedule_of_other_domains_or_another_version_is_refused():
    with pytest.raises(RuntimeError, match="saved for 2 domains, this run has 3"):
        Schedule(np.full(3, 1 / 3)).load_state_dict(schedule_of().state_dict())
    with pytest.raises(RuntimeError, match="version"):
        schedule_of().load_state_dict({"version": 0})
