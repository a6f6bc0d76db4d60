"""What a target's gain costs the others: sums, ratios, and the cost at equal gain, by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from versatune_ds.comparison.cells import cells_of
from versatune_ds.comparison.plan import BaseModelPlan, ComparisonPlan
from versatune_ds.comparison.results_page.expansion_table import (
    at_equal_gain,
    cost_of,
    expansion_section,
    families,
    interpolate,
    less_lost,
)
from versatune_ds.comparison.results_page.results import Results

RUNS = {
    "fill": {"mixture.policy": "target_uniform"},
    "half": {"mixture.policy": "steer"},
    "quarter": {"mixture.policy": "steer", "mixture.target_share": 0.25},
    "other": {"mixture.policy": "steer", "mixture.delta": 0.1},
}
FALLS = {"fill": (0.3, -0.2, -0.2), "half": (0.4, -0.2, -0.4), "quarter": (0.2, 0.1, -0.2), "other": (0.1, 0.0, 0.0)}
"""Relative falls of law, the target, and of code and art, in every seed; all have a loss of 1 before."""


def make_results(falls=FALLS, *, targets=("law",), missing=()):
    plan = ComparisonPlan(
        name="c", recipe="r", base=BaseModelPlan(recipe="r"), runs=RUNS, seeds=(1, 2), baseline="fill", targets=targets
    )
    names = ("law", "code", "art")
    made = {
        cell: {name: {"loss": 1 - fall} for name, fall in zip(names, falls[cell.label], strict=True)}
        for cell in cells_of(plan)
        if (cell.label, cell.seed) not in missing
    }
    base = {name: {"loss": 1.0, "num_examples": 1} for name in names}
    return Results(plan=plan, base=base, domains=made, split="test", weights={})


def costs_of(results):
    return {cell: cost_of(results, cell) for cell in results.domains}


def test_a_runs_cost_is_the_sum_over_the_others_and_the_losses_among_them():
    results = make_results()
    cell = next(cell for cell in results.domains if cell.label == "quarter")
    cost = cost_of(results, cell)
    assert (cost.gain, cost.total, cost.losses) == pytest.approx((0.2, -0.1, -0.2))


def test_the_table_has_gain_sum_losses_and_ratio():
    table = expansion_section(make_results())[2].splitlines()
    assert table[2:] == [
        "| fill | +30.0 ± 0.0 | -40.0 ± 0.0 | -40.0 ± 0.0 | -1.33 |",
        "| half | +40.0 ± 0.0 | -60.0 ± 0.0 | -60.0 ± 0.0 | -1.50 |",
        "| quarter | +20.0 ± 0.0 | -10.0 ± 0.0 | -20.0 ± 0.0 | -0.50 |",
        "| other | +10.0 ± 0.0 | +0.0 ± 0.0 | +0.0 ± 0.0 | +0.00 |",
    ]
    assert expansion_section(make_results(targets=())) == []


def test_runs_that_differ_in_the_targets_share_alone_are_one_policy():
    assert families(RUNS) == [["half", "quarter"]]
    twice = {"a": {"mixture.target_share": 0.5}, "b": {"mixture.target_share": 0.5}, "c": {}}
    assert families({"a": twice["a"], "b": twice["b"]}) == []
    assert families(twice) == [["a", "b", "c"]]


def test_the_line_between_two_shares_is_followed_a_quarter_beyond_them():
    points = [(0.4, -0.5), (0.2, -0.1)]
    assert interpolate(points, 0.3) == (pytest.approx(-0.3), False)
    assert interpolate(points, 0.45) == (pytest.approx(-0.6), True)
    assert interpolate(points, 0.15) == (pytest.approx(0.0), True)
    assert interpolate(points, 0.5) is None
    assert interpolate(points, 0.1) is None
    assert interpolate(points[:1], 0.4) is None
    assert interpolate([(0.2, 1.0), (0.2, 2.0)], 0.2) is None  # two runs of one gain make no line
    assert interpolate([*points, (0.6, 0.5)], 0.5) == (pytest.approx(0.0), False)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(-1, 1)), min_size=2, max_size=5, unique_by=lambda p: p[0]))
def test_at_the_gain_of_a_run_the_interpolated_cost_is_that_runs_own(points):
    for gain, value in points:
        found = interpolate(points, gain)
        assert found is not None
        assert found == (pytest.approx(value, abs=1e-9), False)


def test_the_others_lose_less_at_the_baselines_gain():
    results = make_results()
    equal = at_equal_gain(results, costs_of(results), ["half", "quarter"])
    # Half way between gains of .2 and .4: sum (-.1 - .6) / 2, losses (-.2 - .6) / 2.
    assert list(equal.total.values()) == pytest.approx([-0.35, -0.35])
    assert list(equal.losses.values()) == pytest.approx([-0.4, -0.4])
    text = "\n".join(expansion_section(results))
    assert (
        "| half and quarter | 2 of 2 (0) | -35.0 ± 0.0 (+5.0 ± 0.0) | 12.5 (12 to 12) | -40.0 ± 0.0 (+0.0 ± 0.0) | "
        in text
    )
    assert "### At the target's gain of `fill`" in text


def test_a_missing_run_takes_its_pair_out():
    results = make_results(missing={("half", 2)})
    equal = at_equal_gain(results, costs_of(results), ["half", "quarter"])
    assert [cell.seed for cell in equal.total] == [1]
    assert "| half and quarter | 1 of 2 (0) | -35.0 (+5.0) | 12.5 | " in "\n".join(expansion_section(results))


def test_less_lost_is_a_share_of_what_the_others_lose_under_the_baseline():
    assert less_lost([-0.1, -0.2], [-0.2, -0.4]) == "50.0 (50 to 50)"
    assert less_lost([-0.1, -0.2], [0.2, 0.4]) == "-"
    assert less_lost([0.1], [-0.2]) == "150.0"
