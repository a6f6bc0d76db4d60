"""The controller: scripted traces with hand-computed decisions, skipped updates, resume bit for bit."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import numpy as np
import pytest

from versatune_ds.config import MixtureConfig
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.controller import Controller
from versatune_ds.mixture.decision import Decision
from versatune_ds.mixture.inputs import Inputs
from versatune_ds.mixture.measurement import Measurement
from versatune_ds.mixture.policies import POLICIES
from versatune_ds.mixture.reference import load_references
from versatune_ds.mixture.settings import starting_weights
from versatune_ds.mixture.statistics import DomainStatistics, ExampleLosses

DOMAINS = DomainSet(("law", "code"))
SIX = DomainSet(("law", "medicine", "finance", "science", "code", "general"))
NUM_EXAMPLES = 120


def controller_of(domain_set=DOMAINS, **settings):
    settings = MixtureConfig(**{"policy": "versatune", "prior": "uniform"} | settings)
    start_K = starting_weights(settings, domain_set=domain_set, sizes_K=np.arange(1, len(domain_set) + 1))
    references = load_references(settings, domain_set=domain_set)
    return Controller(domain_set=domain_set, settings=settings, weights_K=start_K, references=references)


def decide_means(controller, *losses_by_update, every=50, **keys):
    """Decide on bare means at steps 0, every, 2 * every, ..."""
    return [
        controller.decide_measured(
            Measurement.of_means(np.array(loss_K, dtype=float)), step=every * n, effective_step=every * n + 3, **keys
        )
        for n, loss_K in enumerate(losses_by_update)
    ]


def example_losses(update, *, domain_set=SIX, seed=0):
    """Losses of the same examples at an update: each domain falls at its own pace, noisily."""
    num_domains = len(domain_set)
    fixed = np.random.default_rng(seed)
    tokens_E, hardness_E = fixed.integers(5, 60, NUM_EXAMPLES), fixed.normal(3.0, 0.5, NUM_EXAMPLES)
    ids_E = np.arange(NUM_EXAMPLES) % num_domains
    noise_E = np.random.default_rng([seed, update]).normal(0, 0.02, NUM_EXAMPLES)
    mean_E = hardness_E * 0.97 ** (update * (1 + ids_E) / num_domains) + noise_E
    return ExampleLosses(
        loss_sum_E=tokens_E * mean_E, num_loss_tokens_E=tokens_E, domain_ids_E=ids_E, num_domains=num_domains
    )


def test_the_measurement_before_training_fixes_references_and_moves_nothing():
    controller = controller_of(reference={"start_fraction": 0.5})
    (decision,) = decide_means(controller, [2.0, 4.0])
    assert decision.update == 0
    assert decision.weights_after == decision.weights_before == {"law": 0.5, "code": 0.5}
    assert decision.reason.startswith("Baseline before training")
    assert decision.signals["law"]["reference_loss"] == 1.0
    assert decision.signals["code"]["learnable_potential"] == 0.5
    assert decision.signals["code"]["forgetting_degree"] == 0.0


def test_a_domain_that_reaches_its_stand_in_reference_is_a_warning_once_and_with_measured_ones_none(caplog):
    losses = ([2.0, 4.0], [1.2, 2.0], [0.9, 1.9], [0.8, 1.8])
    decide_means(controller_of(reference={"start_fraction": 0.5}), *losses)
    reached = "reached the stand-in reference, 0.5 of the first loss"
    assert [text.split(",")[0] for text in caplog.messages if "stand-in" in text] == [
        "step 50: code has reached the stand-in reference", "step 100: law has reached the stand-in reference",
    ]  # fmt: skip
    assert all(reached in text for text in caplog.messages)
    caplog.clear()
    decide_means(controller_of(reference={"law": 1.0, "code": 2.0}), *losses)
    decide_means(controller_of(reference={"start_fraction": 0.5}, policy="uniform"), *losses)
    assert caplog.messages == []


def test_steer_already_moves_over_one_interval_before_training():
    # Losses (2, 4) are (1, 3) nats above their references: anchor 1/2 of (.5, .5) tracks (.375, .625), rate .4 goes
    # from (.5, .5) to (.45, .55); then again, over the 50 steps of the first interval.
    steer = {"rate": 0.4, "anchor": 0.5}
    settings = {"policy": "steer", "steer": steer, "reference": {"law": 1.0, "code": 1.0}, "prior_uniform_share": 0.0}
    before, after = decide_means(controller_of(**settings), [2.0, 4.0], [2.0, 4.0])
    assert before.update == 0
    assert before.effective_step == 3
    assert before.weights_after == pytest.approx({"law": 0.45, "code": 0.55})
    assert "code has most left to learn (3.000 nats above its reference)" in before.reason
    assert after.weights_after == pytest.approx({"law": 0.42, "code": 0.58})


def test_a_versatune_update_by_hand():
    # References (1, 1): losses (2, 1.25) give g = (.5, .2); sigma .5 over one interval: (.5 * 1.25, .5 * 1.1) / 1.175.
    controller = controller_of(reference={"law": 1.0, "code": 1.0})
    baseline, decision = decide_means(controller, [3.0, 3.0], [2.0, 1.25])
    assert baseline.update == 0
    assert decision.update == 1
    assert (decision.decided_at_step, decision.effective_step) == (50, 53)
    assert decision.weights_after["law"] == pytest.approx(1.25 / 2.35)
    assert decision.weights_after["code"] == pytest.approx(1.1 / 2.35)
    assert decision.acted == ()
    assert "law has most left to learn (potential 0.500)" in decision.reason


def test_a_longer_interval_goes_further_and_paper_mode_does_not():
    losses = [3.0, 3.0], [2.0, 1.25]
    references = {"law": 1.0, "code": 1.0}
    twice = decide_means(controller_of(reference=references), *losses, every=100)[1]
    assert twice.weights_after["law"] == pytest.approx(1.25**2 / (1.25**2 + 1.1**2))
    paper = decide_means(controller_of(reference=references, paper=True), *losses, every=100)[1]
    assert paper.weights_after["law"] == pytest.approx(1.25 / 2.35)


def test_a_first_measurement_after_step_0_is_an_update():
    controller = controller_of(reference={"law": 1.0, "code": 1.0})
    measurement = Measurement.of_means(np.array([2.0, 1.25]))
    decision = controller.decide_measured(measurement, step=50, effective_step=53)
    assert decision.update == 1
    assert decision.weights_after["law"] == pytest.approx(1.25 / 2.35)


def test_every_branch_of_expansion_on_a_scripted_trace():
    controller = controller_of(
        policy="expansion",
        target="law",
        reference={"law": 1.0, "code": 1.0},
        sigma=0.0,
        delta=0.1,
        epsilon=0.1,
        paper=True,
    )
    decisions = decide_means(
        controller,
        [2.0, 2.0],  # baseline
        [2.0, 1.9],  # code fell: law gains
        [2.0, 1.9 * 1.04],  # forgetting .04 < .1 * .5: law gains
        [2.0, 1.9 * 1.04 * 1.06],  # forgetting .06 >= .05: law holds
        [1.0, 1.9],  # law has nothing left: law holds
    )
    weights = [decision.weights_after["law"] for decision in decisions]
    assert weights == pytest.approx([0.5, 0.6, 0.7, 0.7, 0.7])
    assert "is below the tolerated 0.0500, so law gains" in decisions[2].reason
    assert "is not below the tolerated 0.0500, so law holds" in decisions[3].reason


def with_change_errors(loss_K, stderr):
    """A measurement whose changes since the previous, best and first loss have the same standard error."""
    stderr_K = np.full(len(loss_K), stderr)
    columns = ("loss_stderr_K", "change_stderr_K", "change_from_best_stderr_K", "change_from_start_stderr_K")
    return replace(Measurement.of_means(np.array(loss_K)), **dict.fromkeys(columns, stderr_K))


def test_expansion_records_the_cap_that_stops_its_target():
    controller = controller_of(
        policy="expansion", target="law", reference={"law": 1.0, "code": 1.0}, delta=0.1, safeguards={"cap": 0.65}
    )
    _, free, cut, stopped = decide_means(controller, [2.0, 2.0], [2.0, 2.0], [2.0, 2.0], [2.0, 2.0])
    assert [d.weights_after["law"] for d in (free, cut, stopped)] == pytest.approx([0.6, 0.65, 0.65])
    assert [d.acted for d in (free, cut, stopped)] == [(), ("cap: law",), ("cap: law",)]


def test_expansion_records_the_confidence_bound_where_it_decided():
    # Tolerated: epsilon * g * n = .1 * .5 = .05. Code rises by 6 %: with a standard error of .04 / 2 it counts as 4 %.
    settings = {"policy": "expansion", "target": "law", "reference": {"law": 1.0, "code": 1.0}, "epsilon": 0.1}
    start, risen = with_change_errors([2.0, 2.0], 0.04), with_change_errors([2.0, 2.12], 0.04)
    by_z = {}
    for z in (0.0, 1.0):
        controller = controller_of(**settings, delta=0.1, safeguards={"z": z})
        controller.decide_measured(start, step=0, effective_step=3)
        by_z[z] = controller.decide_measured(risen, step=50, effective_step=53)
    assert by_z[0.0].weights_after["law"] == pytest.approx(0.5)
    assert by_z[0.0].acted == ()
    assert by_z[1.0].weights_after["law"] == pytest.approx(0.6)
    assert by_z[1.0].acted == ("confidence bound: the mean forgetting 0.0600 counts as 0.0400",)


def test_the_confidence_bound_is_recorded_where_it_eases_the_forgetting_budget():
    controller = controller_of(reference={"law": 1.0, "code": 1.0}, safeguards={"forgetting_budget": 0.05})
    controller.decide_measured(with_change_errors([2.0, 2.0], 0.04), step=0, effective_step=3)
    decision = controller.decide_measured(with_change_errors([2.0, 2.12], 0.04), step=50, effective_step=53)
    assert decision.acted == ("confidence bound: less of the budget is used by code",)


def test_a_nan_loss_never_reaches_a_weight(caplog):
    controller = controller_of(reference={"law": 1.0, "code": 1.0})
    measurement = replace(Measurement.of_means(np.array([np.nan, 1.5])), num_loss_tokens_K=np.array([10, 10]))
    first = decide_means(controller, [3.0, 3.0], [2.0, 1.25])[1]
    with caplog.at_level(logging.WARNING, logger="versatune_ds"):
        skipped = controller.decide_measured(measurement, step=100, effective_step=103)
    assert skipped.update == 2
    assert skipped.acted == ("skipped",)
    assert skipped.reason == "Update skipped: the loss of law is not a number; the weights stay."
    assert skipped.weights_after == first.weights_after
    assert skipped.losses["law"] == {"mean": None, "stderr": None, "num_loss_tokens": 10}
    assert "the loss of law is not a number" in caplog.text
    # The next update is as if the skipped one had not been measured: two intervals have passed.
    after = controller.decide_measured(Measurement.of_means(np.array([2.0, 1.25])), step=150, effective_step=153)
    ratio = first.weights_after["law"] / first.weights_after["code"]
    assert after.weights_after["law"] / after.weights_after["code"] == pytest.approx(ratio * (1.25 / 1.1) ** 2)


def test_a_measurement_of_nothing_is_skipped():
    controller = controller_of(reference={"start_fraction": 0.5})
    _, decision = decide_means(controller, [3.0, 3.0], [np.nan, np.nan])
    assert decision.reason == "Update skipped: no domain was measured; the weights stay."


def test_an_absent_domain_keeps_its_signal():
    controller = controller_of(reference={"law": 1.0, "code": 1.0})
    _, _, decision = decide_means(controller, [3.0, 3.0], [2.0, 1.25], [np.nan, 1.25])
    assert decision.signals["law"]["learnable_potential"] == 0.5
    assert decision.losses["law"] == {"mean": None, "stderr": None, "num_loss_tokens": 0}
    assert decision.acted == ("previous signals kept: law",)


def test_a_domain_that_was_never_measured_has_no_signal_to_keep():
    controller = controller_of(reference={"law": 1.0, "code": 1.0})
    assert [decision.acted for decision in decide_means(controller, [np.nan, 3.0], [np.nan, 1.25])] == [(), ()]


def test_memorised_references_are_refused_at_the_first_measurement():
    controller = controller_of(reference={"law": 0.0001, "code": 0.001})
    with pytest.raises(ValueError, match="memorised"):
        decide_means(controller, [3.0, 3.0])
    lenient = controller_of(reference={"law": 0.0001, "code": 0.001}, reference_check="warn")
    assert decide_means(lenient, [3.0, 3.0])[0].update == 0


def test_a_controller_without_the_references_its_policy_needs_is_refused():
    with pytest.raises(ValueError, match=r"^mixture\.reference: policy 'steer' needs"):
        Controller(domain_set=DOMAINS, settings=MixtureConfig(), weights_K=np.array([0.5, 0.5]))


def test_a_stage_of_a_schedule_begins_by_the_step_its_weights_take_effect():
    stages = [[0, {"law": 0.5, "code": 0.5}], [53, {"law": 0.9, "code": 0.1}]]
    _, decision = decide_means(controller_of(policy="schedule", schedule=stages), [2.0, 2.0], [2.0, 2.0])
    assert (decision.decided_at_step, decision.effective_step) == (50, 53)
    assert decision.weights_after == {"law": 0.9, "code": 0.1}


def test_live_control_applies_is_recorded_and_ends_when_removed():
    controller = controller_of(policy="constant", prior={"law": 0.3, "code": 0.7})
    inputs = Inputs(pins={"law": 0.6})
    _, pinned = decide_means(controller, [2.0, 2.0], [2.0, 2.0], inputs=inputs)
    assert pinned.weights_after == pytest.approx({"law": 0.6, "code": 0.4})
    assert pinned.inputs == {"pins": {"law": 0.6}}
    free = controller.decide_measured(Measurement.of_means(np.array([2.0, 2.0])), step=100, effective_step=103)
    assert free.weights_after == {"law": 0.3, "code": 0.7}


def test_live_control_replaces_rates():
    controller = controller_of(policy="expansion", target="law", reference={"start_fraction": 0.5}, delta=0.02)
    _, decision = decide_means(controller, [2.0, 2.0], [2.0, 2.0], inputs=Inputs(delta=0.2, epsilon=1.0))
    assert decision.weights_after["law"] == pytest.approx(0.7)
    steered = controller_of(policy="steer", reference={"law": 1.0, "code": 1.5})
    (decision,) = decide_means(steered, [2.0, 2.0], inputs=Inputs(rate=1.0, anchor=0.0))
    assert decision.weights_after["law"] == pytest.approx(2 / 3)
    assert decision.inputs == {"rate": 1.0, "anchor": 0.0}


@pytest.mark.parametrize("policy", sorted(set(POLICIES) - {"schedule"}))
def test_resume_at_every_update_gives_the_same_decisions_bit_for_bit(policy):
    settings = {"policy": policy, "target": "law", "reference": {"start_fraction": 0.6}, "sigma": 2.0}
    controllers, reference = [controller_of(SIX, **settings)], []
    states = []
    for update in range(6):
        states.append(json.dumps(controllers[0].state_dict()))
        reference.append(
            controllers[0].decide(example_losses(update), step=40 * update, effective_step=40 * update + 3)
        )
    for start, state in enumerate(states):
        resumed = controller_of(SIX, **settings)
        resumed.load_state_dict(json.loads(state))
        for update in range(start, 6):
            decision = resumed.decide(example_losses(update), step=40 * update, effective_step=40 * update + 3)
            assert decision.to_json() == reference[update].to_json()


def test_a_state_of_other_domains_is_refused():
    state = controller_of(reference={"start_fraction": 0.5}).state_dict()
    with pytest.raises(RuntimeError, match="saved for domains"):
        controller_of(SIX, reference={"start_fraction": 0.5}).load_state_dict(state)
    with pytest.raises(RuntimeError, match="saved by version 99"):
        controller_of(reference={"start_fraction": 0.5}).load_state_dict(state | {"version": 99})


def test_paired_errors_are_far_below_the_errors_of_the_means():
    controller = controller_of(SIX, reference={"start_fraction": 0.6})
    controller.decide(example_losses(0), step=0, effective_step=3)
    decision = controller.decide(example_losses(1), step=50, effective_step=53)
    for name in SIX:
        assert decision.signals[name]["change_stderr"] < 0.2 * decision.losses[name]["stderr"]


def test_other_validation_examples_are_logged_and_accepted(caplog):
    controller = controller_of(SIX, reference={"start_fraction": 0.6})
    controller.decide(example_losses(0), step=0, effective_step=3)
    with caplog.at_level(logging.WARNING, logger="versatune_ds"):
        decision = controller.decide(example_losses(1, seed=7), step=50, effective_step=53)
    assert "validation examples changed" in caplog.text
    assert sum(decision.weights_after.values()) == pytest.approx(1.0)


def test_training_losses_can_move_the_weights():
    controller = controller_of(reference={"law": 1.0, "code": 1.0})
    for step, loss_sum_K in ((0, [30.0, 30.0]), (50, [20.0, 12.5])):
        statistics = DomainStatistics(
            loss_sum_K=np.array(loss_sum_K), loss_sq_sum_K=np.array([90.0, 90.0]), num_loss_tokens_K=np.array([10, 10])
        )
        decision = controller.decide_from_statistics(statistics, step=step, effective_step=step + 3)
    assert decision.weights_after["law"] == pytest.approx(1.25 / 2.35)
    assert decision.signals["law"]["change_stderr"] > 0


@pytest.mark.parametrize("policy", ["uniform", "constant", "inverse", "proportional", "target_only"])
def test_no_safeguard_touches_a_fixed_mixture(policy):
    controller = controller_of(policy=policy, target="law", prior={"law": 0.99, "code": 0.01})
    start_K = controller.weights_K.tolist()
    decisions = decide_means(controller, [3.0, 3.0], [2.0, 1.0], [1.0, 5.0])
    assert all(list(decision.weights_after.values()) == start_K for decision in decisions)
    assert all(decision.acted == () for decision in decisions)


def test_a_collapse_is_limited_and_raises_an_alarm(caplog):
    controller = controller_of(SIX, reference=dict.fromkeys(SIX, 0.5), sigma=50.0)
    losses = [[5.0] * 6] + [[5.0, 0.5, 0.5, 0.5, 0.5, 0.5]] * 40
    with caplog.at_level(logging.WARNING, logger="versatune_ds"):
        last = decide_means(controller, *losses)[-1]
    assert last.weights_after["law"] == pytest.approx(0.9)
    assert min(last.weights_after.values()) >= 0.1 / 6 - 1e-9
    assert any(text.startswith("alarm: effective number of domains") for text in last.acted)
    assert "effective number of domains" in caplog.text


def test_decisions_of_one_trace_are_valid_json_lines_with_valid_digests():
    controller = controller_of(SIX, reference={"start_fraction": 0.6})
    for update in range(4):
        decision = controller.decide(example_losses(update), step=50 * update, effective_step=50 * update + 3)
        again = Decision.from_json(decision.to_json())
        again.verify()
        assert again == decision
