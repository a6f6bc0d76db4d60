"""Over-fitting: told apart from forgetting by the training loss, reduced to the floor, released, resumed exactly."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from versatune_ds.config import MixtureConfig
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.controller import Controller
from versatune_ds.mixture.explain import explain
from versatune_ds.mixture.inputs import Inputs
from versatune_ds.mixture.measurement import Measurement
from versatune_ds.mixture.offline.replay import Part, first_difference, replay
from versatune_ds.mixture.overfitting import OverfitWatch, reduce_over_fitting
from versatune_ds.mixture.policies.acted import kinds_of, read_recorded
from versatune_ds.mixture.statistics import DomainStatistics

DOMAINS = DomainSet(("law", "code", "general"))
START_K = np.array([0.5, 0.3, 0.2])


def watching(mode="reduce", policy="authors_code", weights_K=START_K, **safeguards):
    """Return a controller; `authors_code` with equal losses proposes the weights it has."""
    config = MixtureConfig(policy=policy, safeguards={"overfit": mode, "max_kl": None, "cap": 1.0, **safeguards})
    return Controller(domain_set=DOMAINS, settings=config, weights_K=np.array(weights_K))


def told(train_K):
    """Return the inputs of a decision with these training losses."""
    known = {name: loss for name, loss in zip(DOMAINS, train_K, strict=True) if loss is not None}
    return Inputs(train_losses=known, train_loss_stderrs=dict.fromkeys(known, 0.01))


def decide_all(controller, history):
    """Return the decisions on pairs of held-out and training losses, one an interval; the first is before training."""
    return [
        controller.decide_measured(
            Measurement.of_means(np.array(held_out_K, dtype=float)),
            step=50 * update,
            effective_step=50 * update + 3,
            inputs=Inputs() if train_K is None else told(train_K),
        )
        for update, (held_out_K, train_K) in enumerate(history)
    ]


def law(held_out, train):
    """Return losses in which law is as given, and the other two stay as they are."""
    return [held_out, 1.8, 1.8], [train, 1.5, 1.5]


BEFORE = [([1.8, 1.8, 1.8], None), law(1.5, 1.4)]
"""Law learns; its best held-out loss is 1.5, its training loss then 1.4."""


def over_fitting_of(decision):
    return [text for text in decision.acted if text.startswith("over-fitting")]


def test_a_held_out_loss_that_rises_twice_while_the_training_loss_falls_halves_the_weight():
    first, second, third = decide_all(watching(), [*BEFORE, law(1.6, 1.2), law(1.65, 1.05), law(1.7, 0.9)])[-3:]
    assert over_fitting_of(first) == []
    before, after = second.weights_before, second.weights_after
    assert after["law"] == before["law"] / 2
    assert over_fitting_of(second) == [
        f"over-fitting: law (held-out loss +10.0% from its best, training loss -25.0%) at most {before['law'] / 2:.4f}"
    ]
    assert third.weights_after["law"] == before["law"] / 4


def test_the_others_share_what_an_over_fitting_domain_gives_up():
    watch = OverfitWatch.empty(3)
    watch.is_over_fitting_K[0] = True
    weights_K, acted = reduce_over_fitting(
        START_K, before_K=START_K, watch=watch, floor=0.0, num_intervals=1.0, domain_set=DOMAINS
    )
    assert weights_K == pytest.approx([0.25, 0.45, 0.30])
    assert acted[0].domains == ("law",)


def test_the_weight_falls_to_the_floor_and_no_further():
    history = [*BEFORE, *(law(1.6 + 0.01 * i, 1.2 - 0.05 * i) for i in range(12))]
    last = decide_all(watching(floor=0.05), history)[-1]
    assert last.weights_after["law"] == pytest.approx(0.05)
    assert over_fitting_of(last)[0].endswith("at most 0.0500")


def test_a_forgotten_domain_whose_training_loss_rises_too_never_over_fits():
    history = [*BEFORE, *(law(1.6 + 0.1 * i, 1.45 + 0.1 * i) for i in range(5))]
    assert not any(over_fitting_of(decision) for decision in decide_all(watching(), history))


def test_the_forgetting_budget_raises_a_forgotten_domain_and_never_an_over_fitting_one():
    """Both rise by the same; the training loss decides which of the two safeguards acts, and only one does."""
    over_fits = [
        ([1.5, 1.5, 1.8], [1.4, 1.4, 1.5]),
        ([1.7, 1.7, 1.8], [1.1, 1.6, 1.5]),
        ([1.8, 1.8, 1.8], [1.0, 1.7, 1.5]),
    ]
    suspected, last = decide_all(watching(forgetting_budget=0.01), [([1.8, 1.8, 1.8], None), *over_fits])[-2:]
    assert suspected.acted == ("forgetting budget 1.0%: code 13.3%",)
    by_kind = {acted.kind: acted.text for acted in read_recorded(list(last.acted))}
    assert "law" in by_kind["over-fitting"]
    assert "code" not in by_kind["over-fitting"]
    assert by_kind["forgetting budget"] == "forgetting budget 1.0%: code 20.0%"
    assert last.weights_after["law"] < last.weights_before["law"]
    assert last.weights_after["code"] > last.weights_before["code"]


def test_a_domain_that_recovers_from_the_first_steps_does_not_over_fit():
    """A learning rate that warms up lets losses rise at first: both losses are then on their way back."""
    history = [([1.0, 1.8, 1.8], None), law(1.6, 1.5), law(1.5, 1.3), law(1.4, 1.2), law(1.3, 1.1)]
    assert not any(over_fitting_of(decision) for decision in decide_all(watching(), history))


def test_a_domain_at_its_best_before_training_is_compared_with_its_first_training_loss():
    """Before the first step there is no training loss; from the first one on, the held-out loss must rise further."""
    decisions = decide_all(watching(), [([1.0, 1.8, 1.8], None), law(1.2, 1.5), law(1.3, 1.2), law(1.5, 1.0)])
    assert [bool(over_fitting_of(decision)) for decision in decisions] == [False, False, False, True]
    assert "+25.0% from its best" in over_fitting_of(decisions[-1])[0]


@pytest.mark.parametrize(
    ("back", "reason"),
    [([law(1.5, 0.9)], "held-out loss came back"), ([law(1.7, 1.5)] * 2, "training loss rose again, twice")],
)
def test_the_weight_is_free_again_once(back, reason):
    decisions = decide_all(watching(), [*BEFORE, law(1.6, 1.2), law(1.65, 1.05), *back])
    assert over_fitting_of(decisions[-1]) == ["over-fitting ended: law"], reason
    assert all(not text.startswith("over-fitting ended") for d in decisions[:-1] for text in d.acted)


def test_warn_records_and_logs_once_and_leaves_the_weights_as_with_off(caplog):
    history = [*BEFORE, law(1.6, 1.2), law(1.65, 1.05), law(1.7, 0.9)]
    with caplog.at_level(logging.WARNING, logger="versatune_ds"):
        warned = decide_all(watching("warn"), history)
    off = decide_all(watching("off"), history)
    assert [d.weights_after for d in warned] == [d.weights_after for d in off]
    assert not any(over_fitting_of(d) for d in off)
    assert over_fitting_of(warned[-1])[0].endswith("reported only")
    text = (
        "step 150: law over-fits (held-out loss +10.0% from its best, training loss -25.0%); "
        "mixture.safeguards.overfit=reduce lowers its weight"
    )
    assert [record.getMessage() for record in caplog.records] == [text]


@pytest.mark.parametrize("policy", ["uniform", "constant"])
def test_a_fixed_mixture_is_only_warned_about(policy):
    history = [*BEFORE, law(1.6, 1.2), law(1.65, 1.05)]
    last = decide_all(watching("reduce", policy=policy), history)[-1]
    assert last.weights_after == last.weights_before
    assert over_fitting_of(last)[0].endswith("reported only")


def test_where_every_domain_over_fits_the_weights_stay():
    history = [([1.8] * 3, None), ([1.5] * 3, [1.4] * 3), ([1.6] * 3, [1.2] * 3), ([1.7] * 3, [1.0] * 3)]
    last = decide_all(watching(), history)[-1]
    assert last.weights_after == pytest.approx(last.weights_before)
    assert over_fitting_of(last)[0].endswith("reported only")


def test_a_longer_interval_takes_more_so_that_updating_twice_as_often_changes_nothing():
    watch = OverfitWatch.empty(3)
    watch.is_over_fitting_K[0] = True

    def reduced(weights_K, num_intervals):
        return reduce_over_fitting(
            weights_K, before_K=weights_K, watch=watch, floor=0.0, num_intervals=num_intervals, domain_set=DOMAINS
        )[0]

    assert reduced(reduced(START_K, 0.5), 0.5) == pytest.approx(reduced(START_K, 1.0))


def test_without_training_losses_nothing_over_fits():
    history = [([1.8, 1.8, 1.8], None), ([1.5, 1.8, 1.8], None), ([1.7, 1.8, 1.8], None), ([1.9, 1.8, 1.8], None)]
    assert not any(over_fitting_of(decision) for decision in decide_all(watching(), history))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.floats(0.5, 3.0), min_size=3, max_size=3),
            st.lists(st.one_of(st.none(), st.floats(0.2, 3.0)), min_size=3, max_size=3),
        ),
        min_size=2,
        max_size=10,
    ),
    st.integers(1, 9),
)
def test_a_run_resumed_after_any_update_decides_the_same_bits_and_replays(pairs, stop):
    history = [(pairs[0][0], None), *pairs[1:]]
    whole = decide_all(watching(), history)
    first = watching()
    decide_all(first, history[:stop])
    resumed = watching()
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    rest = [
        resumed.decide_measured(
            Measurement.of_means(np.array(held_out_K)),
            step=d.decided_at_step,
            effective_step=d.effective_step,
            inputs=Inputs.from_dict(d.inputs),
        )
        for d, (held_out_K, _) in zip(whole[stop:], history[stop:], strict=True)
    ]
    assert [d.digest for d in rest] == [d.digest for d in whole[stop:]]
    for decision in whole:
        assert sum(decision.weights_after.values()) == pytest.approx(1.0)
        assert min(decision.weights_after.values()) >= 0.1 / 3 - 1e-9
    config = MixtureConfig(policy="authors_code", safeguards={"overfit": "reduce", "max_kl": None, "cap": 1.0})
    again = replay(whole, parts=[Part(settings=config)], domain_set=DOMAINS)
    assert first_difference(whole, again) is None


def test_the_state_of_an_earlier_version_loads_and_watches_from_there():
    state = watching().state_dict()
    del state["overfit"]
    controller = watching()
    controller.load_state_dict(state)
    assert over_fitting_of(decide_all(controller, [*BEFORE, law(1.6, 1.2), law(1.65, 1.05)])[-1])


def test_explain_and_the_kinds_of_the_report_name_it():
    last = decide_all(watching(), [*BEFORE, law(1.6, 1.2), law(1.65, 1.05)])[-1]
    assert kinds_of(read_recorded(list(last.acted))) == ["over-fitting"]
    text = explain(last)
    assert "Safeguards that acted: over-fitting: law (held-out loss +10.0% from its best" in text
    assert "Training losses since the last update: law 1.0500, code 1.5000, general 1.5000." in text
    assert "train_losses" not in text


def test_training_losses_of_domains_without_tokens_are_left_out():
    statistics = DomainStatistics(
        loss_sum_K=[4.0, 0.0, 9.0], loss_sq_sum_K=[10.0, 0.0, 27.0], num_loss_tokens_K=[2, 0, 3]
    )
    inputs = Inputs(caps={"law": 0.5}).with_train_losses(statistics, domain_set=DOMAINS)
    assert inputs.train_losses == {"law": 2.0, "general": 3.0}
    assert inputs.train_loss_stderrs["law"] == pytest.approx((1 / 2) ** 0.5)
    assert Inputs.from_dict(json.loads(json.dumps(inputs.to_dict()))) == inputs
    assert inputs.control() == Inputs(caps={"law": 0.5})


def test_paper_mode_and_the_training_signal_watch_nothing():
    assert MixtureConfig().watches_overfitting
    assert not MixtureConfig(paper=True).watches_overfitting
    assert not MixtureConfig(signal="train").watches_overfitting
    with pytest.raises(ValueError, match=r"overfit: reduce compares held-out with training losses.*signal=validation"):
        MixtureConfig(signal="train", safeguards={"overfit": "reduce"})
