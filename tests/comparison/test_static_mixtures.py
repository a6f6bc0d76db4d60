"""The drawn fixed mixtures: the same every time, within the bounds, and more of them leave the first ones alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from versatune_ds.comparison.static_mixtures import draw_mixtures


def draw(num=4, concentrations=(1.0, 2.5), floor=0.05, cap=0.8):
    names = ("law", "code", "general")
    return draw_mixtures(names, num=num, concentrations=concentrations, floor=floor, cap=cap)


def test_more_mixtures_leave_the_first_ones_as_they_were():
    assert list(draw()) == ["static01", "static02", "static03", "static04"]
    more = draw(num=7)
    assert {label: more[label] for label in draw()} == draw()
    assert draw()["static01"] != draw()["static03"]


def test_concentrations_are_taken_in_turn():
    assert draw()["static01"] == draw(concentrations=(1.0,))["static01"]
    assert draw()["static02"] == draw(concentrations=(2.5,))["static02"]
    assert draw(concentrations=(1e6,))["static02"] == pytest.approx(
        dict.fromkeys(("law", "code", "general"), 1 / 3), abs=0.01
    )


@given(st.floats(0, 0.3), st.floats(0.4, 1), st.floats(0.05, 10))
def test_every_mixture_sums_to_one_within_the_bounds(floor, cap, concentration):
    for weights in draw(num=3, concentrations=(concentration,), floor=floor, cap=cap).values():
        values = np.array(list(weights.values()))
        assert values.sum() == pytest.approx(1.0, abs=1e-9)
        assert values.min() >= floor - 2e-6
        assert values.max() <= cap + 2e-6
