"""The planner `dynamics`: a linear response to the first measurement, and an exact linear programme."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transfer_tables import BASE_K, source, two_domain_table

from versatune_ds.domains import DomainSet
from versatune_ds.mixture.planning.dynamics import DYNAMICS, solve_programme
from versatune_ds.mixture.planning.goal import Goal, goal_of
from versatune_ds.mixture.planning.limits import Limits
from versatune_ds.mixture.planning.predictor import PlanTask
from versatune_ds.mixture.planning.search import search
from versatune_ds.mixture.planning.transfer_table import TransferTable

FREE = Limits(lower_K=np.zeros(2), upper_K=np.ones(2))


def predictor(table):
    return DYNAMICS.make(PlanTask(table=table, num_steps=4, num_tokens=400, folder=Path()))


def goal(purpose="mean", **options):
    return goal_of(purpose, domain_set=DomainSet(("law", "code")), base_losses_K=BASE_K, target="law", **options)


def table_of(changes_KK):
    """Return the table of domains with losses of 2 nats, whose runs change all losses as the rows say."""
    changes_KK = np.array(changes_KK, dtype=float)
    K = len(changes_KK)
    names, template = tuple("abcd"[:K]), source([[0.0, 0.0]] * 3)

    def own(changes_K):
        changes_SK = np.array([np.zeros(K), changes_K, changes_K])
        return dataclasses.replace(
            template, losses_SK=2.0 + changes_SK, changes_SK=changes_SK, change_stderrs_SK=np.zeros((3, K))
        )

    return TransferTable(
        domain_set=DomainSet(names),
        base_losses_K=np.full(K, 2.0),
        base_stderrs_K=np.full(K, 0.1),
        sources={name: own(changes_K) for name, changes_K in zip(names, changes_KK, strict=True)},
    )


def test_the_loss_is_that_of_the_first_measurement_mixed_linearly():
    """After 200 tokens: law alone (-.75, +.25), code alone (+.0625, -1)."""
    predicted = predictor(two_domain_table()).predict(np.array([[1.0, 0.0], [0.5, 0.5]]))
    assert predicted.losses_NK[0].tolist() == [1.25, 3.25]
    assert predicted.losses_NK[1].tolist() == [2.0 - 0.34375, 3.0 - 0.375]
    assert predicted.stderrs_NK[0].tolist() == [0.1, 0.1]
    assert predicted.stderrs_NK[1] == pytest.approx([0.1 / 2**0.5] * 2)


def test_a_run_measured_later_counts_by_its_slope():
    table = two_domain_table()
    code = dataclasses.replace(table.sources["code"], tokens_S=np.array([0, 400, 800]))
    found = predictor(dataclasses.replace(table, sources={**table.sources, "code": code}))
    assert found.calibration == {"horizon_tokens": 200.0}
    assert found.predict(np.array([[0.0, 1.0]])).losses_NK[0].tolist() == [2.03125, 2.5]


def test_without_bounds_all_weight_goes_to_the_steepest_domain():
    """The mean falls by .25 a probe on law, and by .46875 on code."""
    assert solve_programme(predictor(two_domain_table()), goal(), FREE) == pytest.approx([0.0, 1.0])


def test_a_bound_holds_exactly_where_it_binds():
    """Law must not rise: -.75 w + .0625 (1 - w) <= 0, so w >= 1/13."""
    weights_K = solve_programme(predictor(two_domain_table()), goal("balanced"), FREE)
    assert weights_K == pytest.approx([1 / 13, 12 / 13])


def test_the_target_gets_as_much_as_the_others_bound_allows():
    """Code may rise by 2 %, .06 nats: .25 w - (1 - w) <= .06, so w <= 1.06 / 1.25."""
    weights_K = solve_programme(predictor(two_domain_table()), goal("target"), FREE)
    assert weights_K == pytest.approx([1.06 / 1.25, 0.19 / 1.25])


def test_where_no_mixture_meets_the_bounds_the_worst_excess_is_least():
    """Both must fall by half: law by 1 nat, code by 1.5; relative excesses are equal at the best."""
    both = goal("balanced", bound_all=-0.5)
    found = predictor(two_domain_table())
    weights_K = solve_programme(found, both, FREE)
    excess_K = both.excess(found.predict(weights_K[None]))[0]
    assert excess_K[0] == pytest.approx(excess_K[1], abs=1e-6)
    assert excess_K[0] > 0


def test_among_mixtures_that_break_a_bound_equally_the_objective_decides():
    """Rows of a and of b lower a alike, and not enough for its bound; those of b lower c too."""
    aim = Goal(purpose="mean", base_losses_K=np.full(3, 2.0), bounds_K=np.array([-0.5, np.inf, np.inf]))
    found = predictor(table_of([[-0.2, 0, 0], [-0.2, 0, -0.1], [0, 0, -0.4]]))
    limits = Limits(lower_K=np.zeros(3), upper_K=np.ones(3))
    assert solve_programme(found, aim, limits) == pytest.approx([0.0, 1.0, 0.0], abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([np.inf, 0.0, -0.05]))
def test_no_random_mixture_is_better_and_the_limits_hold(seed, bound):
    rng = np.random.default_rng(seed)
    table = table_of(rng.normal(0.0, 0.3, (4, 4)) - 0.4 * np.eye(4))
    aim = Goal(purpose="mean", base_losses_K=np.full(4, 2.0), bounds_K=np.full(4, bound))
    limits = Limits(lower_K=np.full(4, 0.05), upper_K=np.full(4, 0.7))
    found = predictor(table)
    best_K = solve_programme(found, aim, limits)
    assert limits.contain(best_K[None])[0]
    others_NK = limits.nearest(rng.dirichlet(np.ones(4), size=400))
    all_NK = np.concatenate([best_K[None], others_NK])
    predicted = found.predict(all_NK)
    worst_N, objective_N = aim.worst_excess(predicted), aim.objective(predicted)
    assert worst_N[0] <= worst_N.min() + 1e-6
    comparable_N = worst_N <= worst_N[0]
    assert objective_N[0] <= objective_N[comparable_N].min() + 1e-6


def test_the_search_returns_the_solution():
    found = predictor(two_domain_table())
    aim = goal("balanced")
    best = search(
        found, aim, limits=FREE, named={}, seed=1, num_predictions=0, solution_K=DYNAMICS.solve(found, aim, FREE)
    )
    assert best.weights_K == pytest.approx([1 / 13, 12 / 13], abs=1e-5)


def test_a_domain_without_held_out_rows_or_run_changes_nothing():
    table = two_domain_table()
    table = dataclasses.replace(table, sources={"law": table.sources["law"]}, unmeasured=("code",))
    predicted = predictor(table).predict(np.array([[0.5, 0.5]]))
    assert predicted.losses_NK[0, 0] == 2.0 - 0.375
    assert np.isnan(predicted.losses_NK[0, 1])


def test_a_missing_run_and_a_run_without_a_measurement_are_refused():
    table = two_domain_table()
    with pytest.raises(ValueError, match="no run on code alone"):
        predictor(dataclasses.replace(table, sources={"law": table.sources["law"]}))
    short = source([[0.0, 0.0]])
    with pytest.raises(ValueError, match=r"sources\.code: expected a measurement after the first step"):
        predictor(dataclasses.replace(table, sources={**table.sources, "code": short}))
