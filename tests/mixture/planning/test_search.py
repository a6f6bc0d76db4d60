"""The search: known optima, bounds that bind, bounds that nothing meets, few costly predictions."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quadratic_predictor import quadratic

from versatune_ds.domains import DomainSet
from versatune_ds.mixture.planning.front import fill_front, front
from versatune_ds.mixture.planning.goal import goal_of
from versatune_ds.mixture.planning.limits import Limits
from versatune_ds.mixture.planning.predictor import Predicted
from versatune_ds.mixture.planning.search import candidates, search

NAMES = ("law", "code", "art", "news", "math", "food")


def limits_of(num_domains, floor=0.0, cap=1.0):
    return Limits(lower_K=np.full(num_domains, floor), upper_K=np.full(num_domains, cap))


def goal_for(predictor, purpose="mean", **options):
    domain_set = DomainSet(NAMES[: len(predictor.base_losses_K)])
    return goal_of(purpose, domain_set=domain_set, base_losses_K=predictor.base_losses_K, **{"target": None} | options)


def find(predictor, purpose="mean", *, limits=None, seed=0, num_predictions=96, **options):
    num_domains = len(predictor.base_losses_K)
    return search(
        predictor,
        goal_for(predictor, purpose, **options),
        limits=limits or limits_of(num_domains),
        named={"uniform": np.full(num_domains, 1 / num_domains)},
        seed=seed,
        num_predictions=num_predictions,
    )


def test_the_mean_of_two_domains_is_lowest_where_their_gains_balance():
    # Mean = [2 (1 - w + w^2) + (1 - (1 - w) + (1 - w)^2)] / 2 has derivative (6 w - 3) / 2, 0 at w = 1/2; with costs
    # 1 and 2 it is [2 (2 w - 1) + (1 - 4 (1 - w))] / 2, 0 at w = 5/8.
    assert find(quadratic(base=[2, 1], gain=1, cost=1)).weights_K == pytest.approx([0.5, 0.5], abs=1e-3)
    assert find(quadratic(base=[2, 1], gain=1, cost=[1, 2])).weights_K == pytest.approx([0.625, 0.375], abs=1e-3)


def test_a_bound_that_binds_is_met_exactly():
    # Without law its loss rises by .3 (1 - w) - .6 w: it is the base model's at w = 1/3, and code learns more.
    predictor = quadratic(base=[1, 1], gain=[0.6, 2], others=[0.3, 0])
    assert find(predictor).weights_K == pytest.approx([0, 1], abs=1e-3)
    assert find(predictor, "balanced").weights_K == pytest.approx([1 / 3, 2 / 3], abs=1e-3)
    # A rise of .12 is allowed at .3 - .9 w = .12.
    assert find(predictor, "balanced", bounds={"law": 0.12}).weights_K == pytest.approx([0.2, 0.8], abs=1e-3)
    assert find(predictor, bound_all=0.12).weights_K == pytest.approx([0.2, 0.8], abs=1e-3)


def test_the_target_gets_what_the_bounds_of_the_others_leave():
    predictor = quadratic(base=[1, 2, 1], gain=[1, 0.5, 0.5], others=[0, 0.2, 0.1])
    found = find(predictor, "target", target="law")
    # .2 - .7 w = .02 and .1 - .6 w = .02
    assert found.weights_K == pytest.approx([1 - 0.18 / 0.7 - 0.08 / 0.6, 0.18 / 0.7, 0.08 / 0.6], abs=1e-3)
    assert found.worst_id is None


def test_where_nothing_meets_the_bounds_the_worst_domain_is_as_near_to_its_bound_as_can_be():
    # Each loss rises by .5 - .9 w, by 5 % at best in both.
    predictor = quadratic(base=[1, 3], gain=0.4, others=0.5)
    found = find(predictor, "balanced")
    assert found.weights_K == pytest.approx([0.5, 0.5], abs=1e-3)
    assert found.worst_excess == pytest.approx(0.05, abs=1e-3)
    # With another bound for one of them both lie .0125 beyond.
    found = find(predictor, "balanced", bounds={"law": 0.075})
    assert found.worst_excess == pytest.approx(0.0125, abs=1e-3)
    assert found.weights_K == pytest.approx([(0.5 - 0.0875) / 0.9, (0.5 - 0.0125) / 0.9], abs=1e-3)


def test_floor_cap_and_given_shares_are_kept():
    predictor = quadratic(base=[1, 1, 1], gain=[3, 1, 0.1])
    found = find(predictor, limits=limits_of(3, floor=0.05, cap=0.6))
    assert found.weights_K == pytest.approx([0.6, 0.35, 0.05], abs=1e-3)
    given_share = Limits(lower_K=np.array([0.0, 0.0, 0.25]), upper_K=np.array([0.5, 1.0, 0.25]))
    assert find(predictor, limits=given_share).weights_K == pytest.approx([0.5, 0.25, 0.25], abs=1e-3)
    with pytest.raises(ValueError, match="no weights lie between"):
        limits_of(3, floor=0.4)


def test_a_domain_without_held_out_rows_counts_for_nothing():
    predictor = quadratic(base=[1, np.nan, 1], gain=[1, 9, 2])
    found = find(predictor, "balanced")
    assert found.weights_K == pytest.approx([0, 0, 1], abs=1e-3)
    with pytest.raises(ValueError, match=r"--bound code=0: code has no held-out rows, so its loss is unknown"):
        goal_for(predictor, bounds={"code": 0.0})


def test_a_goal_names_what_is_wrong():
    predictor = quadratic(base=[1, 1], gain=1)
    with pytest.raises(ValueError, match=r"--for target: mixture\.target is not set; .*mixture\.target=law"):
        goal_for(predictor, "target")
    with pytest.raises(ValueError, match=r"mixture\.target: unknown domain 'lw'; did you mean 'law'\?"):
        goal_for(predictor, "target", target="lw")
    with pytest.raises(ValueError, match=r"--bound lw=0\.1: unknown domain; did you mean 'law'\?"):
        goal_for(predictor, bounds={"lw": 0.1})
    assert goal_for(predictor, "target", target="law", bounds={"law": -0.1}).bounds_K.tolist() == [-0.1, 0.02]


def test_predictions_without_a_slope_do_not_stop_the_search():
    """Losses in steps of a thousandth, as rounding gives them: only exchanges of weight find the way down."""
    best_K = np.array([0.3, 0.25, 0.2, 0.1, 0.1, 0.05])

    class Stepped:
        is_costly = False
        calibration = None

        def predict(self, weights_NK):
            distance_N = ((weights_NK - best_K) ** 2).sum(axis=1, keepdims=True)
            losses_NK = np.round(np.broadcast_to(1 + 10 * distance_N, weights_NK.shape), 3)
            return Predicted(losses_NK=losses_NK, stderrs_NK=np.zeros(losses_NK.shape))

    goal = goal_for(quadratic(base=np.ones(6), gain=0))
    found = search(Stepped(), goal, limits=limits_of(6), named={}, seed=1, num_predictions=1)
    assert found.predicted.losses_NK[0, 0] == pytest.approx(1.0, abs=1.5e-3)
    assert found.weights_K == pytest.approx(best_K, abs=0.015)


def random_predictor(seed, num_domains, **options):
    rng = np.random.default_rng(seed)
    base, gain, cost, others = (rng.uniform(low, 2, num_domains) for low in (0.2, 0.0, 0.0, -0.5))
    return quadratic(base=base, gain=gain, cost=cost, others=others / 4, **options)


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_domains=st.integers(2, 6),
    purpose=st.sampled_from(["mean", "balanced", "target"]),
    floor_share=st.floats(0, 0.9),
)
def test_the_plan_is_within_its_limits_and_no_scored_mixture_within_them_is_better(
    seed, num_domains, purpose, floor_share
):
    predictor = random_predictor(seed, num_domains)
    limits = limits_of(num_domains, floor=floor_share / num_domains, cap=0.95)
    found = find(predictor, purpose, limits=limits, seed=seed, target="law")
    goal = goal_for(predictor, purpose, target="law")
    assert found.weights_K.sum() == pytest.approx(1.0, abs=1e-9)
    assert limits.contain(found.weights_K[None])[0]
    # Neither one that was predicted, nor one of others.
    others_NK = candidates(np.random.default_rng(seed + 1), 3000, limits=limits)
    mixtures = found.mixtures
    own, (excess,) = goal.objective(found.predicted)[0], goal.worst_excess(found.predicted)
    for predicted, is_within_N in (
        (mixtures.predicted, limits.contain(mixtures.weights_NK)),
        (predictor.predict(others_NK), np.ones(len(others_NK), dtype=bool)),
    ):
        excess_N = goal.worst_excess(predicted)
        assert excess <= excess_N[is_within_N].min() + 1e-9
        assert own <= goal.objective(predicted)[is_within_N & (excess_N <= excess)].min(initial=np.inf) + 1e-9


@pytest.mark.parametrize("is_costly", [False, True])
def test_the_same_seed_finds_the_same_mixture_and_no_mixture_is_predicted_twice(is_costly):
    runs = [find(random_predictor(5, 4, is_costly=is_costly), "balanced", seed=7) for _ in range(2)]
    assert np.array_equal(runs[0].mixtures.weights_NK, runs[1].mixtures.weights_NK)
    assert np.array_equal(runs[0].weights_K, runs[1].weights_K)
    predicted_NK = runs[0].mixtures.weights_NK
    assert len(np.unique(np.round(predicted_NK, 6), axis=0)) == len(predicted_NK)
    other = find(random_predictor(5, 4, is_costly=is_costly), "balanced", seed=8)
    assert not np.array_equal(other.mixtures.weights_NK[:60], predicted_NK[:60])


def test_a_costly_predictor_is_asked_as_often_as_it_may_be_and_comes_near_the_optimum():
    losses = {"base": [1, 0.5, 1, 2, 1, 0.7], "gain": [2, 1.5, 1.2, 1, 0.9, 0.8], "cost": 0.5, "others": 0.12}
    predictor = quadratic(**losses, is_costly=True)
    found = find(predictor, "balanced", num_predictions=96)
    assert len(predictor.asked) == 96
    exact = find(quadratic(**losses), "balanced")
    goal = goal_for(predictor, "balanced")
    uniform = goal.objective(predictor.predict(np.full((1, 6), 1 / 6)))[0]
    gains = [uniform - goal.objective(each.predicted)[0] for each in (found, exact)]
    assert found.worst_excess == 0
    assert gains[0] > 0.95 * gains[1]
    with pytest.raises(ValueError, match=r"--predictions 5: expected at least 8"):
        find(predictor, num_predictions=5)


def test_the_front_has_no_dominated_point_but_labelled_ones_and_its_ends_are_the_extremes():
    predictor = quadratic(base=[1, 1], gain=[0.6, 2], others=[0.3, 0])
    found = find(predictor, "balanced")
    goal = goal_for(predictor, "balanced")
    limits = limits_of(2)
    fill_front(predictor, goal, found.mixtures, limits=limits)
    chosen = int(found.mixtures.add(found.weights_K)[0])
    points = front(found.mixtures, goal, limits=limits, labels={**found.named, "chosen": chosen})
    by_label = {point.label: point for point in points if point.label}
    assert set(by_label) == {"uniform", "chosen"}
    assert by_label["chosen"].worst == pytest.approx(0.0, abs=1e-5)
    unlabelled = [point for point in points if point.label is None]
    assert 15 <= len(unlabelled) <= 20
    assert all(a.mean < b.mean and a.worst > b.worst for a, b in itertools.pairwise(unlabelled))
    # Lowest mean: code alone, law rises by .3. Safest: .3 - .9 w = -2 (1 - w), at w = 2.3 / 2.9.
    assert unlabelled[0].worst == pytest.approx(0.3, abs=1e-3)
    assert names_of(unlabelled[0]) == "law"
    assert unlabelled[-1].weights_K[0] == pytest.approx(2.3 / 2.9, abs=1e-3)


def names_of(point):
    return NAMES[point.worst_id]


def test_the_nearest_mixture_within_limits_keeps_the_ratios_of_those_that_touch_none():
    limits = limits_of(3, floor=0.1)
    assert limits.nearest(np.array([[0.7, 0.28, 0.02]]))[0] == pytest.approx([0.9 * 0.7 / 0.98, 0.9 * 0.28 / 0.98, 0.1])
    inside = np.array([[0.2, 0.3, 0.5]])
    assert np.array_equal(limits.nearest(inside), inside)
