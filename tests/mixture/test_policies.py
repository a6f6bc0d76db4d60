"""Update rules: numbers computed by hand, then the properties that every rule must have."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from versatune_ds.config import MixtureConfig
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.policies import POLICIES, Signals
from versatune_ds.mixture.policies.simplex import normalise
from versatune_ds.mixture.settings import policy_settings

FIXED = {name for name, policy in POLICIES.items() if not policy.moves}
MOVING = tuple(name for name, policy in POLICIES.items() if policy.moves and name != "schedule")


def needs(policy):
    """The smallest mixture section in which a policy may stand."""
    stages = {"schedule": [[0, {"a": 0.5, "b": 0.5}]]} if policy.needs_stages else {}
    return {"policy": policy.name, "target": "a" if policy.target == "required" else None, **stages}


def signals_of(*, loss_K, reference_K=None, forgetting_K=None, update=1, loss_per_weight_sum_K=None):
    """Signals with the given losses; references default to half of them."""
    loss_K = np.array(loss_K, dtype=float)
    reference_K = loss_K / 2 if reference_K is None else np.array(reference_K, dtype=float)
    zeros = np.zeros_like(loss_K)
    return replace(
        Signals.unknown(len(loss_K)),
        update=update,
        loss_K=loss_K,
        reference_loss_K=reference_K,
        learnable_potential_K=np.maximum((loss_K - reference_K) / loss_K, 0.0),
        forgetting_degree_K=zeros if forgetting_K is None else np.array(forgetting_K, dtype=float),
        loss_per_weight_sum_K=zeros if loss_per_weight_sum_K is None else np.array(loss_per_weight_sum_K, dtype=float),
    )


def settings_of(policy="versatune", num_domains=2, start_K=None, **settings):
    names = tuple("abcdefghijkl"[:num_domains])
    if policy in ("expansion", "target_only", "target_uniform"):
        settings.setdefault("target", "a")
    if policy == "schedule":
        settings.setdefault("schedule", [[0, dict.fromkeys(names, 1 / num_domains)]])
    start_K = np.full(num_domains, 1 / num_domains) if start_K is None else np.array(start_K)
    config = MixtureConfig(policy=policy, paper=policy != "steer", **settings)
    return policy_settings(config, domain_set=DomainSet(names), start_weights_K=start_K)


def update(policy, weights_K, signals, settings=None, *, step=100, **keys):
    settings = settings or settings_of(policy, len(weights_K), **keys)
    return POLICIES[policy].update(np.array(weights_K, dtype=float), signals, step, settings)


def test_every_policy_that_a_recipe_may_use_exists():
    assert all(MixtureConfig(**needs(policy)).policy == policy.name for policy in POLICIES.values())
    assert all(name == policy.name for name, policy in POLICIES.items())


def test_versatune_by_hand():
    # g = (0.4, 0): (.5 * 1.2, .5) = (.6, .5), divided by 1.1.
    signals = signals_of(loss_K=[2.0, 2.0], reference_K=[1.2, 2.0])
    assert update("versatune", [0.5, 0.5], signals, sigma=0.5) == pytest.approx([0.6 / 1.1, 0.5 / 1.1])


def test_the_example_of_method_section_8_grows_a_ratio_by_13_percent():
    signals = signals_of(loss_K=[1.0, 1.0], reference_K=[0.4, 0.7])
    weights_K = np.array([0.5, 0.5])
    for _ in range(19):
        weights_K = update("versatune", weights_K, signals, sigma=0.5)
    assert weights_K[0] / weights_K[1] == pytest.approx((1.3 / 1.15) ** 19)
    assert weights_K[0] / weights_K[1] > 10


def test_a_reference_above_the_loss_gives_no_negative_growth():
    signals = signals_of(loss_K=[1.0, 1.0], reference_K=[2.0, 0.5])
    assert update("versatune", [0.5, 0.5], signals, sigma=1.0) == pytest.approx([1 / 2.5, 1.5 / 2.5])


def test_authors_code_by_hand():
    signals = signals_of(loss_K=[1.0, 2.0])
    expected = np.array([0.6 * np.e, 0.4 * np.e**2])
    assert update("authors_code", [0.6, 0.4], signals) == pytest.approx(expected / expected.sum())


def test_the_authors_other_scores_by_hand():
    signals = signals_of(loss_K=[1.0, 2.0], reference_K=[0.5, 2.5])
    excess = np.array([0.6 * np.exp(0.5), 0.4 * np.exp(-0.5)])
    assert update("authors_code_excess", [0.6, 0.4], signals) == pytest.approx(excess / excess.sum())
    relative = np.array([0.6 * np.exp(0.5), 0.4 * np.exp(-0.25)])
    assert update("authors_code_relative", [0.6, 0.4], signals) == pytest.approx(relative / relative.sum())


def test_authors_code_does_not_overflow():
    signals = signals_of(loss_K=[1000.0, 1.0])
    assert update("authors_code", [0.5, 0.5], signals) == pytest.approx([1.0, 0.0])


def test_doremi_clips_the_excess_loss_and_sheared_does_not():
    signals = signals_of(loss_K=[2.0, 1.0], reference_K=[1.0, 1.5])
    clipped = np.array([0.5 * np.e, 0.5])
    signed = np.array([0.5 * np.e, 0.5 * np.exp(-0.5)])
    smooth = lambda raw: (1 - 0.01) * raw / raw.sum() + 0.01 / 2  # noqa: E731
    keys = {"exponentiated": {"step_size": 1.0, "smoothing": 0.01}}
    assert update("doremi", [0.5, 0.5], signals, **keys) == pytest.approx(smooth(clipped))
    assert update("sheared", [0.5, 0.5], signals, **keys) == pytest.approx(smooth(signed))


def test_odm_by_hand():
    # K = 2, t = 2: eps_1 = min(1/2, sqrt(ln 2 / 2)) = 1/2; eps_2 = sqrt(ln 2 / 4) = .41628. R = (.8, .4).
    signals = signals_of(loss_K=[2.0, 1.0], update=2, loss_per_weight_sum_K=[8.0, 4.0])
    exploited = np.exp(np.array([0.4, 0.2]))
    rate = np.sqrt(np.log(2) / 4)
    expected = (1 - 2 * rate) * exploited / exploited.sum() + rate
    assert update("odm", [0.5, 0.5], signals) == pytest.approx(expected)


def test_odm_explores_alone_in_its_first_turn():
    signals = signals_of(loss_K=[5.0, 1.0], update=1, loss_per_weight_sum_K=[10.0, 2.0])
    assert update("odm", [0.9, 0.1], signals) == pytest.approx([0.5, 0.5])


def test_steer_moves_towards_proportional_to_the_nats_above_the_references():
    signals = signals_of(loss_K=[2.0, 1.0], reference_K=[1.4, 0.8])  # e = (.6, .2), tracked (.75, .25)
    free = {"rate": 0.4, "anchor": 0.0}
    assert update("steer", [0.5, 0.5], signals, steer=free) == pytest.approx([0.6, 0.4])
    assert update("steer", [0.75, 0.25], signals, steer=free) == pytest.approx([0.75, 0.25])


def test_steer_is_anchored_in_the_starting_mixture():
    signals = signals_of(loss_K=[2.0, 1.0], reference_K=[1.4, 0.8])
    halfway = settings_of("steer", 2, start_K=[0.1, 0.9], steer={"rate": 1.0, "anchor": 0.5})
    assert update("steer", [0.5, 0.5], signals, halfway) == pytest.approx([0.425, 0.575])
    still = settings_of("steer", 2, start_K=[0.1, 0.9], steer={"rate": 1.0, "anchor": 1.0})
    assert update("steer", [0.5, 0.5], signals, still) == pytest.approx([0.1, 0.9])


def test_steer_can_track_the_relative_potential_of_the_paper():
    signals = signals_of(loss_K=[2.0, 1.0], reference_K=[1.4, 0.8])  # g = (.3, .2)
    relative = {"rate": 1.0, "anchor": 0.0, "potential": "relative"}
    assert update("steer", [0.5, 0.5], signals, steer=relative) == pytest.approx([0.6, 0.4])


def test_steer_keeps_its_target_s_share_and_steers_the_others_among_themselves():
    # The others, b and c, are .3 and .1 nats above their references: (.3, .1) of the .4 they share, half of it; the
    # other half is anchored in their start (.2, .2).
    signals = signals_of(loss_K=[2.0, 1.0, 1.0], reference_K=[0.5, 0.7, 0.9])
    start_K = [0.6, 0.2, 0.2]
    settings = settings_of("steer", 3, start_K=start_K, target="a", steer={"rate": 1.0, "anchor": 0.5})
    assert update("steer", start_K, signals, settings) == pytest.approx([0.6, 0.25, 0.15])
    learnt = signals_of(loss_K=[2.0, 1.0, 1.0], reference_K=[0.5, 1.0, 1.0])
    assert update("steer", [0.6, 0.3, 0.1], learnt, settings) == pytest.approx(start_K)


def test_steer_returns_to_its_start_when_nothing_is_left_to_learn():
    signals = signals_of(loss_K=[1.0, 1.0], reference_K=[1.0, 2.0])
    settings = settings_of("steer", 2, start_K=[0.2, 0.8], steer={"rate": 0.5})
    assert update("steer", [0.4, 0.6], signals, settings) == pytest.approx([0.3, 0.7])


def test_steer_moves_less_by_what_is_within_the_noise_of_the_losses():
    # Left to learn (.03, .01) with standard errors (.06, .08): their sum .04 is .4 of its error .1.
    signals = replace(signals_of(loss_K=[2.0, 1.0], reference_K=[1.97, 0.99]), loss_stderr_K=np.array([0.06, 0.08]))
    settings = {"rate": 1.0, "anchor": 0.0}
    assert update("steer", [0.5, 0.5], signals, steer=settings) == pytest.approx([0.6, 0.4])  # .4 of (.75, .25)
    certain = replace(signals, loss_stderr_K=np.array([0.006, 0.008]))
    assert update("steer", [0.5, 0.5], certain, steer=settings) == pytest.approx([0.75, 0.25])
    relative = {**settings, "potential": "relative"}  # g (.015, .01), errors (.03, .08): .025 of .0854
    moved = 0.025 / np.hypot(0.03, 0.08)
    assert update("steer", [0.5, 0.5], signals, steer=relative) == pytest.approx([0.5 + 0.1 * moved, 0.5 - 0.1 * moved])


def test_a_domain_never_measured_keeps_the_share_it_started_with_under_steer():
    # Nats above the references (.6, .2, unknown): .75 and .25 of the .9 that the unknown one leaves.
    signals = signals_of(loss_K=[1.6, 1.2, np.nan], reference_K=[1.0, 1.0, np.nan])
    settings = settings_of("steer", 3, start_K=[0.2, 0.7, 0.1], steer={"rate": 1.0, "anchor": 0.0})
    assert update("steer", [0.3, 0.5, 0.2], signals, settings) == pytest.approx([0.675, 0.225, 0.1])


def test_where_no_domain_was_measured_steer_stays_at_its_start():
    settings = settings_of("steer", 2, start_K=[0.2, 0.8], steer={"rate": 1.0, "anchor": 0.0})
    assert update("steer", [0.2, 0.8], signals_of(loss_K=[np.nan, np.nan]), settings) == pytest.approx([0.2, 0.8])


def test_a_target_and_a_domain_never_measured_both_keep_their_shares_under_steer():
    signals = signals_of(loss_K=[2.0, 1.6, 1.2, np.nan], reference_K=[1.0, 1.0, 1.0, np.nan])
    settings = settings_of("steer", 4, start_K=[0.5, 0.2, 0.2, 0.1], target="a", steer={"rate": 1.0, "anchor": 0.0})
    assert update("steer", [0.5, 0.2, 0.2, 0.1], signals, settings) == pytest.approx([0.5, 0.3, 0.1, 0.1])


@pytest.mark.parametrize("policy", sorted(FIXED))
def test_a_fixed_mixture_returns_to_its_start_from_anywhere(policy):
    settings = settings_of(policy, 2, start_K=[0.2, 0.8])
    assert update(policy, [0.9, 0.1], signals_of(loss_K=[3.0, 1.0]), settings).tolist() == [0.2, 0.8]


def test_a_schedule_uses_the_stage_that_contains_the_step():
    settings = settings_of("schedule", schedule=[[0, {"a": 0.3, "b": 0.7}], [100, {"a": 0.6, "b": 0.4}]])
    signals = signals_of(loss_K=[1.0, 1.0])
    assert update("schedule", [0.3, 0.7], signals, settings, step=99).tolist() == [0.3, 0.7]
    assert update("schedule", [0.3, 0.7], signals, settings, step=100).tolist() == [0.6, 0.4]


# expansion: every branch.  Target a; g = (.5, .2, .2) with sigma 1 -> factors (1.5, 1.2, 1.2).


def expansion_signals(forgetting_K=(0.0, 0.0, 0.0), potential_K=(0.5, 0.2, 0.2)):
    return signals_of(loss_K=[1.0] * 3, reference_K=1 - np.array(potential_K), forgetting_K=forgetting_K)


def expand(weights_K, signals, **keys):
    keys = {"sigma": 1.0, "delta": 0.1, "epsilon": 0.1} | keys
    return update("expansion", weights_K, signals, **keys)


def test_expansion_gives_the_target_delta_while_the_others_do_not_forget():
    assert expand([0.4, 0.4, 0.2], expansion_signals()) == pytest.approx([0.5, 0.5 * 2 / 3, 0.5 / 3])


def test_expansion_tolerates_forgetting_below_epsilon_times_the_targets_potential():
    # epsilon * g = .05; the target's own forgetting does not count.
    tolerated = expansion_signals(forgetting_K=(9.0, 0.04, 0.05))
    assert expand([0.4, 0.4, 0.2], tolerated)[0] == pytest.approx(0.5)
    too_much = expansion_signals(forgetting_K=(0.0, 0.05, 0.05))
    assert expand([0.4, 0.4, 0.2], too_much)[0] == pytest.approx(0.4)


def test_expansion_keeps_the_targets_weight_and_still_updates_the_others():
    signals = expansion_signals(forgetting_K=(0, 1, 1), potential_K=(0.5, 0.5, 0.0))
    after = expand([0.4, 0.4, 0.2], signals)
    assert after == pytest.approx([0.4, 0.6 * 0.6 / 0.8, 0.6 * 0.2 / 0.8])


def test_expansion_may_follow_versatune_otherwise():
    signals = expansion_signals(forgetting_K=(0, 1, 1))
    after = expand([0.4, 0.4, 0.2], signals, expansion={"otherwise": "multi_ability"})
    assert after == pytest.approx(update("versatune", [0.4, 0.4, 0.2], signals, sigma=1.0))


def test_expansion_keeps_the_weight_of_a_target_without_potential():
    signals = expansion_signals(potential_K=(0.0, 0.2, 0.2))
    assert expand([0.4, 0.4, 0.2], signals)[0] == pytest.approx(0.4)


def test_expansion_stops_at_the_cap_and_never_cuts_a_target_above_it():
    settings = replace(settings_of("expansion", 3, sigma=1.0, delta=0.1, epsilon=0.1), cap=0.45)
    assert update("expansion", [0.4, 0.4, 0.2], expansion_signals(), settings)[0] == pytest.approx(0.45)
    assert update("expansion", [0.6, 0.2, 0.2], expansion_signals(), settings)[0] == pytest.approx(0.6)


def test_expansion_can_give_the_target_everything_in_paper_mode():
    assert expand([0.95, 0.05, 0.0], expansion_signals()).tolist() == [1.0, 0.0, 0.0]
    held = expand([1.0, 0.0, 0.0], expansion_signals(forgetting_K=(0, 1, 1)))
    assert held.tolist() == [1.0, 0.0, 0.0]


# Properties.


@st.composite
def situations(draw):
    """Weights and signals of 2 to 6 domains."""
    num_domains = draw(st.integers(2, 6))

    def column(low, high):
        return np.array(draw(st.lists(st.floats(low, high), min_size=num_domains, max_size=num_domains)))

    loss_K = column(0.1, 8.0)
    signals = signals_of(
        loss_K=loss_K,
        reference_K=loss_K * column(0.05, 1.3),
        forgetting_K=column(0.0, 0.2),
        update=draw(st.integers(1, 50)),
        loss_per_weight_sum_K=column(0.0, 500.0),
    )
    return normalise(column(0.01, 1.0)), signals


def permuted(signals, order):
    return replace(signals, **{name: getattr(signals, name)[order] for name in Signals.vector_names()})


@pytest.mark.parametrize("policy", MOVING)
@given(situations())
def test_weights_stay_on_the_simplex(policy, situation):
    weights_K, signals = situation
    after_K = update(policy, weights_K, signals)
    assert np.all(after_K >= 0)
    assert after_K.sum() == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("policy", ["versatune", "authors_code", "doremi", "sheared"])
@given(situations())
def test_equal_losses_and_potentials_are_a_fixed_point(policy, situation):
    weights_K, _ = situation
    equal = signals_of(loss_K=np.full(len(weights_K), 2.0))
    after_K = update(policy, weights_K, equal, exponentiated={"smoothing": 0.0})
    assert after_K == pytest.approx(weights_K, abs=1e-12)


@given(situations())
def test_equal_potentials_leave_the_ratios_of_the_other_domains_to_expansion(situation):
    weights_K, _ = situation
    weights_K = 0.9 * weights_K + 0.1 / len(weights_K)  # the target cannot take everything at once
    after_K = update("expansion", weights_K, signals_of(loss_K=np.full(len(weights_K), 2.0)), delta=0.01)
    assert after_K[0] == pytest.approx(weights_K[0] + 0.01)
    assert after_K[1:] / after_K[1:].sum() == pytest.approx(weights_K[1:] / weights_K[1:].sum(), abs=1e-12)


@pytest.mark.parametrize("policy", [name for name in MOVING if name != "expansion"])
@given(situations(), st.randoms(use_true_random=False))
def test_the_order_of_domains_does_not_matter(policy, situation, random):
    weights_K, signals = situation
    order = list(range(len(weights_K)))
    random.shuffle(order)
    after_K = update(policy, weights_K, signals)
    assert update(policy, weights_K[order], permuted(signals, order)) == pytest.approx(after_K[order], abs=1e-12)


@given(situations(), st.randoms(use_true_random=False))
def test_the_order_of_the_other_domains_does_not_matter_to_expansion(situation, random):
    weights_K, signals = situation
    others = list(range(1, len(weights_K)))
    random.shuffle(others)
    order = [0, *others]
    after_K = update("expansion", weights_K, signals)
    assert update("expansion", weights_K[order], permuted(signals, order)) == pytest.approx(after_K[order], abs=1e-12)


@pytest.mark.parametrize("policy", ["versatune", "expansion", "steer", "authors_code", "doremi", "sheared"])
@given(situations())
def test_two_half_intervals_equal_one_full_interval(policy, situation):
    weights_K, signals = situation
    settings = replace(
        settings_of(policy, len(weights_K), epsilon=100.0, exponentiated={"smoothing": 0.0}), interval_steps=50
    )
    whole_K = update(policy, weights_K, signals, settings.after_steps(50))
    half_K = update(policy, weights_K, signals, settings.after_steps(25))
    assert update(policy, half_K, signals, settings.after_steps(25)) == pytest.approx(whole_K, abs=1e-9)


@given(situations(), st.floats(0.0, 1.0))
def test_steer_never_leaves_a_domain_less_than_the_anchor_s_share_of_its_start(situation, anchor):
    _, signals = situation
    start_K = normalise(np.arange(1.0, len(signals.loss_K) + 1))
    settings = settings_of("steer", len(start_K), start_K=start_K, steer={"anchor": anchor})
    weights_K = start_K
    for _ in range(5):
        weights_K = update("steer", weights_K, signals, settings)
    assert np.all(weights_K >= anchor * start_K - 1e-12)


def test_in_paper_mode_the_length_of_an_interval_does_not_matter():
    settings = settings_of("versatune")
    assert settings.after_steps(7).num_intervals == 1.0
    assert settings.after_steps(700).num_intervals == 1.0


@pytest.mark.parametrize("policy", ["versatune", "steer", "authors_code", "doremi", "sheared", "odm"])
def test_a_domain_never_measured_counts_like_the_mean_of_the_others(policy):
    known = signals_of(loss_K=[2.0, 2.0, 2.0], loss_per_weight_sum_K=[6.0, 6.0, 6.0])
    unknown = replace(
        known,
        **{
            name: np.where([False, True, False], np.nan, getattr(known, name))
            for name in ("loss_K", "reference_loss_K", "learnable_potential_K", "loss_per_weight_sum_K")
        },
    )
    weights_K = [0.2, 0.5, 0.3]
    assert update(policy, weights_K, unknown) == pytest.approx(update(policy, weights_K, known))


def test_a_targeted_policy_needs_a_second_domain_and_a_known_target():
    with pytest.raises(ValueError, match=r"mixture\.policy: 'expansion' needs at least two domains"):
        settings_of("expansion", 1)
    with pytest.raises(ValueError, match=r"mixture\.target: unknown domain 'z'"):
        settings_of("expansion", 2, target="z")
