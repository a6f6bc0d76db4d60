"""When losses are measured: exact numbers from a clock that the test moves."""

import pytest

from versatune_ds.mixture.decision import Decision
from versatune_ds.training.update_clock import UpdateClock


class Hours:
    """A clock that only the test moves."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


def decision_at(step, **inputs):
    return Decision(
        update=step, decided_at_step=step, effective_step=step + 3, losses={}, signals={}, weights_before={},
        weights_after={}, acted=(), reason="", inputs=inputs,
    )  # fmt: skip


def clock_of(*, max_share=0.02, update_every=4):
    hours = Hours()
    return UpdateClock(update_every=update_every, max_share=max_share, clock=hours), hours


def pass_interval(updates, hours, *, step, training, measuring):
    """Let time pass until a measurement after a step is made; return the stretch that is needed."""
    hours.seconds += training
    with updates.measuring():
        hours.seconds += measuring
    return updates.needed_stretch(step)


@pytest.mark.parametrize(
    ("training", "measuring", "stretch"),
    # With a share of 0.02 an interval of T seconds bears T / 49 s of measuring: 4.9 intervals of 10 s bear 1 s.
    [(10, 1, 5), (49, 1, 1), (48, 1, 2), (10, 0.1, 1), (100, 0, 1), (1, 10, 490)],
)
def test_the_interval_is_stretched_until_measuring_takes_its_share(training, measuring, stretch):
    updates, hours = clock_of()
    assert pass_interval(updates, hours, step=4, training=training, measuring=measuring) == stretch
    assert stretch == 1 or measuring / (measuring + stretch * training) <= 0.02 + 1e-12


def test_a_stretch_is_kept_after_a_small_change_and_lowered_when_measuring_becomes_cheap():
    updates, hours = clock_of()
    updates.follow(decision_at(4, interval_stretch=5))
    for step, measuring, stretch in ((24, 1.0, 5), (44, 0.6, 5), (64, 0.4, 3), (84, 1.1, 6)):
        # five intervals of 10 s each time: 0.4 s need 1.96, with a quarter of headroom 2.45
        assert pass_interval(updates, hours, step=step, training=50, measuring=measuring) == stretch
        updates.follow(decision_at(step, interval_stretch=5))


def test_a_stretched_interval_is_a_multiple_and_a_run_without_max_share_measures_every_time():
    updates, _ = clock_of()
    assert [step for step in range(1, 13) if updates.is_due(step)] == [4, 8, 12]
    updates.follow(decision_at(4, interval_stretch=2))
    assert [step for step in range(5, 21) if updates.is_due(step)] == [12, 16, 20]  # asked, not followed
    updates.follow(decision_at(12))
    assert updates.is_due(16)
    free, hours = clock_of(max_share=None)
    assert pass_interval(free, hours, step=4, training=1, measuring=1000) == 1


def test_the_time_of_saving_and_of_the_start_does_not_count_as_training():
    updates, hours = clock_of()
    hours.seconds += 1000
    updates.begin_steps(2)  # resumed after step 2: two steps until the measurement
    hours.seconds += 2
    with updates.paused():
        hours.seconds += 500
    assert pass_interval(updates, hours, step=4, training=3, measuring=1) == 5  # 5 s of two steps, 10 s of four


def test_a_resumed_clock_counts_from_the_last_decision():
    updates, _ = clock_of()
    updates.follow(decision_at(8, interval_stretch=3))
    resumed, _ = clock_of()
    resumed.load_state_dict(updates.state_dict())
    assert [step for step in range(9, 25) if resumed.is_due(step)] == [20, 24]


def test_a_change_of_the_interval_is_reported_once(caplog):
    caplog.set_level("INFO", logger="versatune_ds")
    updates, hours = clock_of()
    pass_interval(updates, hours, step=4, training=10, measuring=1)
    for step in (4, 24):
        updates.follow(decision_at(step, interval_stretch=5))
    (message,) = [record.message for record in caplog.records]
    assert message.startswith("from now on losses are measured every 20 steps, 5 x mixture.update_every")
    assert message.endswith("measuring took 1.0 s, validation.max_share is 0.02")
