"""The units drawn stay within one example of those that the weights request."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from versatune_ds.data.order.sampler import (
    EXHAUSTED,
    FINISHED,
    NEEDS_WINDOW,
    WEIGHT_SCALE,
    Candidates,
    deficit_after,
    draw,
    quantise_weights,
    settle_debts,
    share_out,
)


def candidates_of(costs: Sequence[Sequence[int]], *, is_last: bool = False) -> Candidates:
    start_K = np.cumsum([0, *map(len, costs)])
    cost_F = np.concatenate([np.array(c, dtype=np.int32) for c in costs])
    return Candidates(start_K, cost_F, cost_F, np.full(len(costs), is_last))


def draw_from(weights: Sequence[float], costs: Sequence[Sequence[int]], max_tokens: int) -> list[int]:
    weight_K = quantise_weights(np.array(weights))
    deficit_K = np.zeros(len(weights), dtype=np.int64)
    return draw(candidates_of(costs), weight_K=weight_K, deficit_K=deficit_K, max_tokens=max_tokens)[0].tolist()


def extremes(
    domain_n: np.ndarray, costs: Sequence[np.ndarray], weight_K: np.ndarray, deficit_K: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Replay draws in Python integers; return greatest lag and lead of each domain, and the deficits at the end."""
    weights, deficits = [int(w) for w in weight_K], [int(d) for d in deficit_K]
    lag, lead, taken = deficits[:], [-d for d in deficits], [0] * len(weights)
    for k in domain_n.tolist():
        cost = int(costs[k][taken[k]])
        taken[k] += 1
        deficits = [d + w * cost for d, w in zip(deficits, weights, strict=True)]
        deficits[k] -= cost * WEIGHT_SCALE
        lag = [max(a, d) for a, d in zip(lag, deficits, strict=True)]
        lead = [max(a, -d) for a, d in zip(lead, deficits, strict=True)]
    return np.array(lag), np.array(lead), np.array(deficits)


def test_weights_of_three_to_one_give_three_draws_to_one():
    assert draw_from([0.75, 0.25], [[1] * 9, [1] * 9], 9) == [0, 1, 0, 0, 0, 1, 0, 0, 0]


def test_after_a_long_example_the_other_domain_catches_up():
    assert draw_from([0.5, 0.5], [[4, 4, 4], [1] * 12], 14) == [1, 0, 1, 1, 1, 1, 0, 1]


def test_weight_zero_is_never_drawn_and_weight_one_always():
    assert set(draw_from([0.0, 1.0, 0.0], [[1] * 5] * 3, 5)) == {1}


def test_drawing_returns_why_it_stopped():
    weight_K, deficit_K = quantise_weights(np.array([1.0])), np.zeros(1, dtype=np.int64)
    for is_last, budget, expected in ((False, 9, NEEDS_WINDOW), (True, 9, EXHAUSTED), (False, 3, FINISHED)):
        found = draw(
            candidates_of([[2, 2]], is_last=is_last), weight_K=weight_K, deficit_K=deficit_K, max_tokens=budget
        )
        assert found[1] == expected


@pytest.mark.parametrize("num_domains", [2, 6, 64, 256])
@pytest.mark.parametrize("concentration", [0.1, 1.0, 100.0])
def test_served_units_stay_within_one_example_of_the_request_at_every_draw(num_domains: int, concentration: float):
    rng = np.random.default_rng(num_domains)
    weight_K = quantise_weights(rng.dirichlet(np.full(num_domains, concentration)))
    costs = [rng.integers(1, rng.integers(2, 600), 4000) for _ in range(num_domains)]
    no_debt_K = np.zeros(num_domains, dtype=np.int64)
    domain_n, _, _ = draw(candidates_of(costs), weight_K=weight_K, deficit_K=no_debt_K, max_tokens=300_000)
    lag_K, lead_K, deficit_K = extremes(domain_n[:2500], costs, weight_K, no_debt_K)
    longest_K = np.array([cost.max() for cost in costs])
    assert (lag_K <= longest_K.max() * WEIGHT_SCALE).all()
    assert (lead_K <= longest_K * WEIGHT_SCALE).all()
    assert deficit_K.sum() == 0


def test_255_light_domains_do_not_wait_for_one_heavy_domain():
    weights = np.array([0.5] + [0.5 / 255] * 255)
    weight_K, no_debt_K = quantise_weights(weights), np.zeros(256, dtype=np.int64)
    costs = [np.ones(3000, dtype=np.int64)] * 256
    domain_n, _, _ = draw(candidates_of(costs), weight_K=weight_K, deficit_K=no_debt_K, max_tokens=2000)
    lag_K, lead_K, _ = extremes(domain_n, costs, weight_K, no_debt_K)
    assert lag_K.max() <= WEIGHT_SCALE
    assert lead_K.max() <= WEIGHT_SCALE


@settings(max_examples=50)
@given(data=st.data(), num_domains=st.integers(1, 12), num_changes=st.integers(1, 6))
def test_after_any_change_of_weights_no_domain_leads_by_more_than_its_longest_example(data, num_domains, num_changes):
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    longest_K = rng.integers(1, 50, num_domains)
    deficit_K = np.zeros(num_domains, dtype=np.int64)
    for _ in range(num_changes):
        weight_K = quantise_weights(rng.dirichlet(np.full(num_domains, 0.3)))
        costs = [rng.integers(1, longest + 1, 600) for longest in longest_K]
        found = draw(candidates_of(costs), weight_K=weight_K, deficit_K=deficit_K, max_tokens=500)
        debt = deficit_K.max()
        lag_K, lead_K, deficit_K = extremes(found[0], costs, weight_K, deficit_K)
        assert (lead_K <= longest_K * WEIGHT_SCALE).all()
        bound = longest_K.max() * (WEIGHT_SCALE + num_domains * weight_K)
        assert (lag_K <= np.maximum(debt, bound)).all()


def drawn_by_fractions(weight_K, deficit_K, costs, num_draws):
    """Return draws by the definition, in exact fractions: of the domains that are owed something, the one due first."""
    served, taken, draws = [0] * len(costs), [0] * len(costs), []
    while len(draws) < num_draws:
        due = []
        for k, weight in enumerate(weight_K.tolist()):
            if weight and int(deficit_K[k]) + weight * sum(served) >= served[k] * WEIGHT_SCALE:
                end = (served[k] + int(costs[k][taken[k]])) * WEIGHT_SCALE - int(deficit_K[k])
                due.append((Fraction(end, weight), k))
        draws.append(min(due)[1])
        served[draws[-1]] += int(costs[draws[-1]][taken[draws[-1]]])
        taken[draws[-1]] += 1
    return draws


@given(
    weights=st.lists(st.sampled_from([0, 0, 1, 1, 2, 3, 1e-6]), min_size=1, max_size=20).filter(any),
    seed=st.integers(0, 99),
    longest=st.sampled_from([1, 3, 50]),
)
def test_the_draws_are_those_of_the_definition_in_fractions_also_where_domains_are_tied(weights, seed, longest):
    rng, K = np.random.default_rng(seed), len(weights)
    weight_K = quantise_weights(np.array(weights) / sum(weights))
    costs = rng.integers(1, longest + 1, size=(K, 60))
    owed = rng.integers(-longest * WEIGHT_SCALE, longest * WEIGHT_SCALE, K) * (weight_K > 0)
    deficit_K = settle_debts(owed, weight_K) - share_out(int(owed.sum()), weight_K)
    draws, _, _ = draw(candidates_of(costs), weight_K=weight_K, deficit_K=deficit_K, max_tokens=10**6)
    first = draws[:40].tolist()
    assert first == drawn_by_fractions(weight_K, deficit_K, costs, len(first))


def test_weights_become_integers_by_largest_remainder():
    assert quantise_weights(np.array([1 / 3, 1 / 3, 1 / 3])).tolist() == [357913942, 357913941, 357913941]
    assert quantise_weights(np.array([1.0, 1e-30])).tolist() == [WEIGHT_SCALE - 1, 1]
    assert quantise_weights(np.array([0.25, 0.75])).tolist() == [WEIGHT_SCALE // 4, 3 * WEIGHT_SCALE // 4]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=256).filter(lambda values: sum(values) > 1e-3))
def test_integer_weights_sum_to_one_and_positive_weights_stay_positive(values: list[float]):
    weights_K = np.array(values) / sum(values)
    weight_K = quantise_weights(weights_K)
    assert weight_K.sum() == WEIGHT_SCALE
    assert ((weight_K > 0) == (weights_K > 0)).all()
    assert np.abs(weight_K / WEIGHT_SCALE - weights_K).max() < 257 / WEIGHT_SCALE


@pytest.mark.parametrize("weights", [[0.5, 0.6], [1.5, -0.5], [float("nan"), 1.0], [0.0, 0.0]])
def test_weights_that_do_not_form_a_distribution_are_refused(weights: list[float]):
    with pytest.raises(ValueError, match="expected non-negative numbers that sum to 1"):
        quantise_weights(np.array(weights))


def test_the_remainder_of_a_split_goes_to_the_smallest_ids_with_weight():
    assert share_out(5, np.array([0, 1, 1])).tolist() == [0, 3, 2]
    assert share_out(-5, np.array([1, 0, 1])).tolist() == [-2, 0, -3]


def test_the_debt_of_a_domain_without_weight_goes_to_the_others():
    assert settle_debts(np.array([6, -2, -4]), np.array([0, 1, 1])).tolist() == [0, 1, -1]


def test_the_deficit_grows_by_the_request_and_shrinks_by_the_units_served():
    half = WEIGHT_SCALE // 2
    assert deficit_after(np.array([0, 0]), np.array([half, half]), np.array([3, 1])).tolist() == [
        -WEIGHT_SCALE,
        WEIGHT_SCALE,
    ]
