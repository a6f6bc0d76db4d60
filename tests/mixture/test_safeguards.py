"""Safeguards: each by hand, then all together, and all of them off in paper mode."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from versatune_ds.config import MixtureConfig
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.inputs import Inputs, supply_caps
from versatune_ds.mixture.loss_limits import eased_plan_bounds, forgetting_budget, plan_bounds
from versatune_ds.mixture.policies import Signals
from versatune_ds.mixture.policies.acted import ALARM, Acted, kinds_of, read_recorded, recorded_texts
from versatune_ds.mixture.policies.simplex import normalise
from versatune_ds.mixture.safeguards import apply_safeguards, effective_domains_alarm, kl_limit, prior_pull
from versatune_ds.mixture.settings import SafeguardSettings, policy_settings, safeguard_settings
from versatune_ds.mixture.weights import kl_divergence

DOMAINS = DomainSet(("law", "code", "general"))
EVEN = np.full(3, 1 / 3)


def signals_with(from_best_K=(0, 0, 0), from_start_K=(0, 0, 0)):
    return replace(
        Signals.unknown(3),
        forgetting_from_best_K=np.array(from_best_K, dtype=float),
        forgetting_from_start_K=np.array(from_start_K, dtype=float),
    )


def guard(weights_K, *, before_K=EVEN, start_K=EVEN, inputs=None, signals=None, **settings):
    """Return the weights, and what a decision records of the safeguards that acted."""
    after_K, acted = apply_safeguards(
        np.array(weights_K, dtype=float),
        before_K=np.array(before_K, dtype=float),
        start_weights_K=np.array(start_K, dtype=float),
        signals=signals or signals_with(),
        settings=SafeguardSettings(**settings),
        inputs=inputs or Inputs(),
        num_intervals=1.0,
        domain_set=DOMAINS,
    )
    return after_K, recorded_texts(acted)


def resolved(**settings):
    return safeguard_settings(MixtureConfig(**settings), start_weights_K=EVEN)


def by_plan(weights_K, rises_K, bounds_K, *, target_id=None, before_K=(0, 0, 0)):
    """Return the weights [K] rounded to 1e-9, and what the decision records."""
    after_K, acted = plan_bounds(
        np.array(weights_K, dtype=float),
        before_K=np.array(before_K, dtype=float),
        signals=replace(Signals.unknown(3), planned_rise_K=np.array(rises_K, dtype=float)),
        bounds_K=np.array(bounds_K, dtype=float),
        num_intervals=1.0,
        domain_set=DOMAINS,
        target_id=target_id,
    )
    return after_K.round(9).tolist(), recorded_texts(acted)


def test_a_plans_bound_raises_the_weight_by_what_lies_beyond_it_and_at_most_twofold():
    # 1 % above its bound of 3 %: times 1.5, (.6, .4, .2) / 1.2. 50 % above: times 2, (.8, .4, .2) / 1.4.
    text = "plan bounds: would end at law +4.0% of +3.0%"
    assert by_plan([0.4, 0.4, 0.2], [0.04, 0.02, -0.5], [0.03, 0.03, 0.03]) == (
        [0.5, round(1 / 3, 9), round(1 / 6, 9)],
        (text,),
    )
    after_K, _ = by_plan([0.4, 0.4, 0.2], [0.53, 0.02, -0.5], [0.03, 0.03, 0.03])
    assert after_K == [round(number, 9) for number in (0.8 / 1.4, 0.4 / 1.4, 0.2 / 1.4)]


def test_a_plans_bound_counts_from_the_weight_before_and_may_be_zero_or_a_gain():
    # The rule lowered law from .4 to .1, and it should gain 10 % but would gain 9: .4 * 1.5 = .6, (.6, .6, .3) / 1.5.
    after_K, _ = by_plan([0.1, 0.6, 0.3], [-0.09, 0, 0], [-0.1, 0.0, np.inf], before_K=[0.4, 0.4, 0.2])
    assert after_K == [0.4, 0.4, 0.2]


def test_a_domain_without_bound_or_measurement_is_left_alone_by_the_plan():
    assert by_plan([0.4, 0.4, 0.2], [9.0, np.nan, 0.0], [np.inf, 0.0, np.inf]) == ([0.4, 0.4, 0.2], ())


def test_a_target_keeps_its_share_while_a_plans_bound_moves_weight_to_another_domain():
    # General doubles to .4 beside code's .3; the two divide the half that law leaves them in 4 : 3.
    after_K, _ = by_plan([0.5, 0.3, 0.2], [-0.5, 0.0, 0.5], [np.inf, 0.03, 0.03], target_id=0)
    assert after_K == [0.5, round(0.5 * 3 / 7, 9), round(0.5 * 4 / 7, 9)]


@given(
    rises_K=st.lists(st.floats(-1, 1), min_size=3, max_size=3),
    bounds_K=st.lists(st.floats(-0.5, 0.5), min_size=3, max_size=3),
    parts_K=st.lists(st.floats(0.05, 1), min_size=3, max_size=3),
)
def test_a_plans_bounds_never_lower_the_share_of_the_domain_farthest_beyond_its_bound(rises_K, bounds_K, parts_K):
    weights_K = normalise(np.array(parts_K))
    after_K, acted = by_plan(weights_K, rises_K, bounds_K)
    excess_K = np.array(rises_K) - np.array(bounds_K)
    assert sum(after_K) == pytest.approx(1.0)
    assert bool(acted) == bool(np.any(excess_K > 0))
    assert after_K[int(np.argmax(excess_K))] >= weights_K[int(np.argmax(excess_K))] - 1e-8


def test_a_rise_above_the_plans_bound_within_the_noise_is_recorded_and_moves_nothing():
    unbounded = replace(Signals.unknown(3), planned_rise_K=np.array([0.04, 0.04, 0.0]))
    signals = replace(Signals.unknown(3), planned_rise_K=np.array([0.02, 0.035, 0.0]))
    (acted,) = eased_plan_bounds(signals, unbounded=unbounded, bounds_K=np.full(3, 0.03), domain_set=DOMAINS)
    assert acted.text == "confidence bound: above the plan's bound within noise: law"


def test_no_safeguard_acts_when_all_are_off():
    weights_K, acted = guard([0.98, 0.02, 0.0])
    assert weights_K.tolist() == [0.98, 0.02, 0.0]
    assert acted == ()


def test_the_floor_lists_the_domains_it_raised():
    weights_K, acted = guard([0.7, 0.28, 0.02], floor=0.1)
    assert weights_K == pytest.approx([0.7 * 0.9 / 0.98, 0.28 * 0.9 / 0.98, 0.1])
    assert acted == ("floor: general",)


def test_the_cap_lists_the_domain_it_cut():
    weights_K, acted = guard([0.8, 0.1, 0.1], cap=0.5)
    assert weights_K == pytest.approx([0.5, 0.25, 0.25])
    assert acted == ("cap: law",)


def test_the_kl_limit_shortens_the_step_to_exactly_the_limit():
    after_K, acted = kl_limit(np.array([0.9, 0.05, 0.05]), base_K=EVEN, max_kl=0.1)
    assert kl_divergence(after_K, EVEN) == pytest.approx(0.1, abs=1e-9)
    assert after_K[1] == pytest.approx(after_K[2])
    assert acted == (Acted("KL limit", (), "KL limit: 0.704 nats cut to 0.1"),)
    assert kl_limit(np.array([0.4, 0.3, 0.3]), base_K=EVEN, max_kl=0.1)[1] == ()


def test_a_domain_can_leave_weight_0_under_the_kl_limit():
    after_K, _ = kl_limit(np.array([0.5, 0.25, 0.25]), base_K=np.array([0.5, 0.5, 0.0]), max_kl=0.1)
    assert after_K[2] > 0


def test_the_pull_blends_in_the_start_by_interval():
    weights_K = np.array([0.8, 0.1, 0.1])
    once, acted = prior_pull(weights_K, start_weights_K=EVEN, pull=0.2, num_intervals=1.0)
    assert once == pytest.approx(0.8 * weights_K + 0.2 * EVEN)
    assert acted == (Acted("prior pull", (), "prior pull 0.2"),)
    half, _ = prior_pull(weights_K, start_weights_K=EVEN, pull=0.2, num_intervals=0.5)
    assert prior_pull(half, start_weights_K=EVEN, pull=0.2, num_intervals=0.5)[0] == pytest.approx(once)


def test_the_forgetting_budget_raises_forgotten_domains_and_lists_the_worst_first():
    signals = signals_with(from_best_K=(0.0, 0.03, 0.01), from_start_K=(0.0, 0.0, 0.025))
    after_K, acted = forgetting_budget(
        np.array([0.6, 0.2, 0.2]),
        before_K=np.array([0.5, 0.3, 0.2]),
        signals=signals,
        budget=0.02,
        num_intervals=1.0,
        domain_set=DOMAINS,
    )
    assert after_K == pytest.approx(normalise(np.array([0.6, 0.3 * 1.5, 0.2 * 1.25])))
    text = "forgetting budget 2.0%: code 3.0%, general 2.5%"
    assert acted == (Acted("forgetting budget", ("code", "general"), text),)


def test_a_collapsing_mixture_raises_an_alarm():
    acted = effective_domains_alarm(np.array([0.98, 0.01, 0.01]), min_effective_domains=1.5)
    assert acted == (Acted(ALARM, (), "alarm: effective number of domains 1.12 is below 1.50"),)
    assert effective_domains_alarm(EVEN, min_effective_domains=1.5) == ()


def test_bounds_that_act_together_are_one_entry_and_are_read_back_by_kind():
    _, acted = guard([0.85, 0.14, 0.01], floor=0.1, cap=0.5, prior_pull=0.01)
    assert acted == ("prior pull 0.01", "floor: general; cap: law")
    recorded = read_recorded([*acted, "forgetting budget 2.0%: law 3.1%", "KL limit: 0.3 nats", acted[1]])
    assert kinds_of(recorded) == ["prior pull", "floor", "cap", "forgetting budget", "KL limit"]
    assert recorded_texts(recorded[:3]) == acted
    assert read_recorded(None) == []


def test_a_pinned_weight_is_exact_even_under_the_kl_limit():
    weights_K, acted = guard([0.2, 0.4, 0.4], inputs=Inputs(pins={"law": 0.8}), max_kl=0.001, floor=0.05)
    assert weights_K[0] == pytest.approx(0.8)
    assert "pin: law" in acted[0]


def test_a_frozen_domain_keeps_its_weight_and_the_others_share_the_rest():
    weights_K, acted = guard([0.6, 0.3, 0.1], before_K=[0.2, 0.4, 0.4], inputs=Inputs(freeze=("law",)))
    assert weights_K == pytest.approx([0.2, 0.6, 0.2])
    assert acted == ("freeze: law",)


def test_supply_caps_go_below_the_floor():
    weights_K, acted = guard([0.4, 0.3, 0.3], inputs=Inputs(supply_caps={"law": 0.01}), floor=0.1)
    assert weights_K == pytest.approx([0.01, 0.495, 0.495])
    assert acted == ("supply cap: law",)


def test_supply_caps_that_no_weights_satisfy_are_dropped_and_recorded():
    caps = {"law": 0.1, "code": 0.1, "general": 0.1}
    weights_K, acted = guard([0.4, 0.3, 0.3], inputs=Inputs(supply_caps=caps))
    assert weights_K == pytest.approx([0.4, 0.3, 0.3])
    assert acted == ("supply caps given up: too little data is left in all domains together",)


def test_contradictory_live_control_is_dropped_and_recorded():
    inputs = Inputs(pins={"law": 0.9}, freeze=("code", "general"))
    weights_K, acted = guard([0.4, 0.3, 0.3], inputs=inputs)
    assert weights_K == pytest.approx([0.4, 0.3, 0.3])
    assert acted[0].startswith("control given up")


def test_supply_caps_are_remaining_data_over_remaining_draws():
    assert supply_caps([50.0, 200.0, np.inf], units_left=100.0).tolist() == [0.5, 1.0, 1.0]


def test_paper_mode_switches_every_safeguard_off():
    chosen = {"floor": 0.1, "cap": 0.5, "max_kl": 0.01, "prior_pull": 0.5, "forgetting_budget": 0.01, "z": 3.0}
    assert resolved(paper=True, safeguards=chosen) == SafeguardSettings()
    settings = MixtureConfig(policy="expansion", target="law", paper=True, safeguards=chosen)
    policy = policy_settings(settings, domain_set=DOMAINS, start_weights_K=EVEN)
    assert policy.cap == 1.0
    assert policy.after_steps(12345).num_intervals == 1.0


def test_the_default_floor_is_a_tenth_of_the_uniform_weight():
    assert resolved().floor == pytest.approx(0.1 / 3)
    assert resolved(policy="uniform").floor == 0.0


@pytest.mark.parametrize("policy", ["versatune", "steer", "expansion"])
def test_the_forgetting_budget_is_off_by_default(policy):
    target = {"target": "law"} if policy == "expansion" else {}
    assert resolved(policy=policy, **target).forgetting_budget is None
    assert resolved(policy=policy, safeguards={"forgetting_budget": 0.1}, **target).forgetting_budget == 0.1


@pytest.mark.parametrize(
    ("safeguards", "message"),
    [
        ({"floor": 0.4}, r"^mixture\.safeguards\.floor: 0\.4 for each of 3 domains leaves no room"),
        ({"cap": 0.3}, r"^mixture\.safeguards\.cap: 0\.3 for each of 3 domains sums to less than 1"),
    ],
)
def test_bounds_without_room_are_refused_with_their_key(safeguards, message):
    with pytest.raises(ValueError, match=message):
        resolved(safeguards=safeguards)


def test_a_single_domain_needs_no_bounds():
    settings = safeguard_settings(MixtureConfig(), start_weights_K=np.ones(1))
    assert (settings.floor, settings.cap) == (0.0, 1.0)


vectors = st.lists(st.floats(0.001, 1), min_size=3, max_size=3).map(lambda values: normalise(np.array(values)))


@given(vectors, vectors, st.floats(0, 0.3), st.floats(0.4, 1), st.floats(0.001, 1), st.floats(0, 0.9))
def test_whatever_is_proposed_the_result_is_a_distribution_within_floor_and_cap(
    proposed_K, before_K, floor, cap, max_kl, pull
):
    weights_K, _ = guard(proposed_K, before_K=before_K, floor=floor, cap=cap, max_kl=max_kl, prior_pull=pull)
    assert weights_K.sum() == pytest.approx(1.0, abs=1e-9)
    assert np.all(weights_K >= floor - 1e-9)
    assert np.all(weights_K <= cap + 1e-9)
