"""Updates of the mixture that take effect after the run's end are counted and logged."""

import logging
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from versatune_ds.config import MixtureConfig
from versatune_ds.training.length.late_updates import (
    late_sentence,
    late_words,
    log_if_late,
    log_updates,
    num_late_updates,
)


class Decided:
    """The part of a decision that is read here."""

    def __init__(self, step, *, moves=True):
        self.decided_at_step, self.effective_step = step, step + 3
        self.weights_before, self.weights_after = {"law": 0.5}, {"law": 0.6 if moves else 0.5}


@pytest.mark.parametrize(
    ("num_steps", "update_every", "num_late"),
    # 40 steps: an update after step 37 holds in step 40, one after step 38 or 39 in none.
    [(40, 37, 0), (40, 38, 1), (40, 39, 1), (40, 40, 0), (40, 1, 2), (40, 10, 0), (1, 1, 0), (2, 1, 1), (9, 4, 1)],
)
def test_late_updates_are_those_whose_weights_hold_in_no_step(num_steps, update_every, num_late):
    assert num_late_updates(num_steps=num_steps, update_every=update_every) == num_late


@given(num_steps=st.integers(1, 200), update_every=st.integers(1, 60))
def test_an_update_is_late_exactly_if_it_would_hold_from_a_step_beyond_the_last(num_steps, update_every):
    late = [step for step in range(update_every, num_steps, update_every) if step + 3 > num_steps]
    assert num_late_updates(num_steps=num_steps, update_every=update_every) == len(late)
    assert bool(late_words(num_steps=num_steps, update_every=update_every)) == bool(late)


def test_a_late_decision_is_logged_unless_it_moves_nothing_or_is_the_measurement_of_the_end(caplog):
    caplog.set_level(logging.INFO)
    for decided in (Decided(37), Decided(39, moves=False), Decided(40)):
        log_if_late(decided, num_steps=40)
    assert caplog.messages == []
    log_if_late(Decided(39), num_steps=40)
    (message,) = caplog.messages
    assert message.startswith(
        "The update after step 39 would take effect at step 42, and the run has 40: it changes no"
    )
    assert late_sentence(Decided(37), num_steps=40) == ""


def logged_at_the_start(caplog, num_steps, **mixture):
    caplog.clear()
    caplog.set_level(logging.INFO)
    settings = MixtureConfig(reference={"start_fraction": 0.5}, **mixture).for_length(num_steps)
    log_updates(SimpleNamespace(mixture=settings, train=SimpleNamespace(steps=num_steps)))
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def test_a_run_that_is_never_updated_is_a_warning_at_its_start_and_an_adapted_interval_is_logged(caplog):
    ((level, text),) = logged_at_the_start(caplog, 40, update_every=50)
    assert level == "WARNING"
    assert text == (
        "mixture.update_every: steer, 0 updates in 40 steps; lower mixture.update_every (50) or train longer, or the "
        "weights move once, before training"
    )
    assert logged_at_the_start(caplog, 40) == [("INFO", "mixture.update_every: 10, for a run of 40 steps")]
    assert logged_at_the_start(caplog, 400) == []
    assert logged_at_the_start(caplog, 40, policy="uniform", update_every=50) == []
