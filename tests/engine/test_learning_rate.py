"""The learning rate is a function of the step."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from versatune_ds.config import TrainConfig
from versatune_ds.engine.learning_rate import learning_rate_at


def rates(schedule, *, steps=100, **settings):
    train = TrainConfig(
        steps=steps, learning_rate=1.0, learning_rate_schedule=schedule,
        **{"min_learning_rate_fraction": 0.2, "warmup_fraction": 0.1, **settings},
    )  # fmt: skip
    return [learning_rate_at(step, train) for step in range(1, steps + 1)]


@pytest.mark.parametrize(
    ("schedule", "middle", "last"), [("cosine", 0.6, 0.2), ("linear", 0.6, 0.2), ("constant", 1, 1), ("wsd", 1, 0.2)]
)
def test_the_rate_rises_to_its_peak_and_ends_at_its_final_value(schedule, middle, last):
    values = rates(schedule)
    assert values[0] == pytest.approx(0.1)
    assert max(values) == values[9] == 1.0
    assert values[54] == pytest.approx(middle)
    assert values[-1] == pytest.approx(last)


def test_wsd_falls_along_a_line_over_its_last_steps_only():
    values = rates("wsd", decay_fraction=0.2, min_learning_rate_fraction=0.0)
    assert values[9:80] == [1.0] * 71
    assert [values[84], values[89], values[99]] == pytest.approx([0.75, 0.5, 0.0])


def test_warm_up_by_steps_equals_warm_up_by_the_fraction_that_gives_them():
    assert rates("cosine", warmup_steps=10, warmup_fraction=0.03) == rates("cosine", warmup_fraction=0.1)
    assert rates("linear", warmup_steps=0, warmup_fraction=0.03)[0] == pytest.approx(1 - 0.8 / 100)


@given(
    schedule=st.sampled_from(["cosine", "linear", "constant", "wsd"]),
    steps=st.integers(1, 400),
    warmup=st.floats(0, 0.4),
    decay=st.floats(0.01, 0.4),
    floor=st.floats(0, 1),
)
def test_the_rate_never_leaves_its_bounds_and_never_rises_after_the_warm_up(schedule, steps, warmup, decay, floor):
    values = rates(
        schedule, steps=steps, warmup_fraction=warmup, decay_fraction=decay, min_learning_rate_fraction=floor
    )
    peak = max(round(warmup * steps), 1) - 1
    assert min(values) >= 0
    assert max(values) <= 1 + 1e-12
    assert all(later <= earlier + 1e-12 for earlier, later in zip(values[peak:], values[peak + 1 :], strict=False))
    assert values[-1] >= floor - 1e-12 or steps == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup_steps": 5, "warmup_fraction": 0.2}, r"train\.warmup_steps: 5, and train\.warmup_fraction is 0\.2"),
        ({"warmup_steps": 100}, r"train\.warmup_steps: 100: expected fewer than train\.steps=100"),
        ({"warmup_steps": 60, "decay_fraction": 0.5, "learning_rate_schedule": "wsd"},
         r"train\.decay_fraction: 50 steps of decay and 60 of warm-up are more than train\.steps=100"),
    ],
)  # fmt: skip
def test_a_schedule_that_contradicts_itself_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(steps=100, **settings)


def test_a_recorded_section_is_read_back():
    train = TrainConfig(steps=100, warmup_steps=5)
    assert TrainConfig(**train.model_dump(mode="json")) == train
