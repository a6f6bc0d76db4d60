"""The plan that a run follows: its track in the run's steps, its bounds, and what the controller records of both."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import plan_content

from versatune_ds.config import MixtureConfig
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.controller import Controller
from versatune_ds.mixture.explain import explain
from versatune_ds.mixture.followed_plan import FollowedPlan, followed_plan, plan_to_follow
from versatune_ds.mixture.measurement import Measurement
from versatune_ds.mixture.offline.replay import Part, replay
from versatune_ds.mixture.planning.plan_file import Plan
from versatune_ds.mixture.reference import References
from versatune_ds.mixture.settings import plan_of_prior

DOMAINS = DomainSet(("law", "code"))
ABSENT = object()


def track(*losses_of_law, stderr=0.0):
    """Return the points of a track: law as given, code at 3 throughout."""
    fractions = np.linspace(0, 1, len(losses_of_law))
    return [
        {"fraction": float(f), "losses": {"law": loss, "code": 3.0}, "stderrs": {"law": stderr, "code": stderr}}
        for f, loss in zip(fractions, losses_of_law, strict=True)
    ]


def content(*, law=1.0, bound=0.0, points=ABSENT):
    """Return a plan of law and code, with shares 1/2: law from 2 to `law` nats, code stays at 3."""
    predicted = {
        name: {"loss": loss, "stderr": 0.0, "base": base, "change": loss - base}
        for name, loss, base in (("law", law, 2.0), ("code", 3.0, 3.0))
    }
    points = track(2.0, 2.5, law) if points is ABSENT else points
    course = {} if points is None else {"track": points}
    return plan_content(names=("law", "code"), predicted=predicted, bounds={"law": bound}, **course)


def followed(num_steps=100, **entries):
    plan = Plan.from_dict(content(**entries), place="x")
    return followed_plan(plan, domain_set=DOMAINS, num_steps=num_steps)


def controller(plan=None, **settings):
    settings = MixtureConfig(**{"policy": "steer", "prior": "uniform"} | settings)
    return Controller(
        domain_set=DOMAINS,
        settings=settings,
        weights_K=np.array([0.5, 0.5]),
        references=References(losses_K=np.array([1.0, 2.0])),
        plan=plan,
    )


def decide(controller, *losses, every=25):
    return [
        controller.decide_measured(
            Measurement.of_means(np.array(loss_K, dtype=float)), step=every * n, effective_step=every * n + 3
        )
        for n, loss_K in enumerate(losses)
    ]


def test_the_track_is_stretched_to_the_length_of_the_run_and_straight_between_its_points():
    # Law goes from 2 over 2.5 halfway to 1: shares 1, 1.25, .5 of its first loss.
    plan = followed(num_steps=100)
    assert [plan.ratio_at(step)[0][0] for step in (0, 25, 50, 75, 100)] == [1.0, 1.125, 1.25, 0.875, 0.5]
    assert followed(num_steps=40).ratio_at(10)[0][0] == 1.125


def test_a_bound_that_the_plan_does_not_keep_itself_is_as_wide_as_its_prediction():
    assert followed(law=2.5, bound=0.125).bounds_K.tolist() == [0.25, np.inf]
    assert followed(law=1.0, bound=-0.125).bounds_K.tolist() == [-0.125, np.inf]


def test_a_plan_of_an_earlier_version_is_not_followed_and_one_without_a_track_keeps_its_bounds():
    assert followed(points=None) is None
    plan = followed(points=[])
    assert np.isnan(plan.ratio_at(10)[0]).all()
    assert plan.bounds_K.tolist() == [0.0, np.inf]
    # The end of the plan takes the track's place: half of the run done, half of the way from .5 to 1.5 of the loss.
    assert plan.rise_at_end(np.array([1.5, 1.0]), np.zeros(2), step=50, z=1.0).tolist() == [0.0, 0.0]


def test_steer_follows_the_plan_it_starts_from_unless_told_otherwise(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(content()))

    def follows(**settings):
        settings = MixtureConfig(**{"policy": "steer", "prior": path} | settings)
        return plan_to_follow(settings, plan_of_prior(settings), domain_set=DOMAINS, num_steps=10) is not None

    assert follows()
    assert not follows(steer={"follow_plan": False})
    assert not follows(prior_uniform_share=0.5)
    assert not follows(prior_temperature=3)
    assert not follows(policy="versatune", reference={"start_fraction": 0.5})
    assert not follows(prior="uniform")


def test_a_decision_records_the_track_and_says_who_is_behind_it():
    # After 25 of 100 steps law should be at 2.25 and is at 2.375. A quarter of that distance counts for the end:
    # 1 + .125 / 4 = 1.03125, which is 48.4 % below 2.
    _, decision = decide(controller(followed()), [2, 3], [2.375, 3])
    assert decision.signals["law"]["track_loss"] == 2.25
    assert decision.signals["law"]["planned_rise"] == -0.484375
    assert decision.signals["code"]["track_loss"] == 3.0
    assert "law is 0.125 nats behind its plan" in decision.reason
    assert "plan" in explain(decision).splitlines()[3]


def test_the_track_is_a_share_of_the_first_loss_that_the_run_measured_itself():
    _, decision = decide(controller(followed()), [4, 3], [4.5, 3])
    assert decision.signals["law"]["track_loss"] == 4.5
    assert "every domain is where its plan expects it" in decision.reason


def test_a_distance_within_its_standard_error_is_not_said():
    plan = followed(points=track(2.0, 2.5, 1.0, stderr=0.25))
    _, decision = decide(controller(plan), [2, 3], [2.375, 2.5])
    assert "behind" not in decision.reason
    assert "code is 0.500 nats ahead of its plan" in decision.reason


def test_the_expected_rise_counts_a_distance_from_the_track_as_far_as_the_run_has_come():
    # Law's track is 1, 1.25, .5 of its first loss, with an error of 1/16 at the end. Halfway at 1.5: .5 - 1 + .5 * .25.
    plan = dataclasses.replace(followed(), end_stderr_K=np.array([0.0625, 0.0]))

    def rise(step, ratio, *, stderr=0.0, z=0.0):
        return plan.rise_at_end(np.array([ratio, 1.0]), np.array([stderr, 0.0]), step=step, z=z)[0]

    assert rise(0, 1.5) == -0.5
    assert rise(50, 1.5) == -0.375
    assert rise(100, 1.5) == 0.5  # what was measured
    assert rise(50, 1.5, z=1.0) == -0.375 - 0.03125  # half of the end's error
    assert rise(100, 1.5, stderr=0.125, z=2.0) == 0.25  # at the end that of the measurement alone
    assert rise(50, 1.5, stderr=0.125, z=1.0) == pytest.approx(-0.375 - 0.5 * np.hypot(0.125, 0.0625))


def test_a_rise_that_the_plan_expects_on_the_way_moves_no_weight_back():
    _, decision = decide(controller(followed()), [2, 3], [2.25, 3])
    assert not any(text.startswith("plan bounds") for text in decision.acted)


def test_a_domain_that_would_end_above_its_bound_gets_weight_back_before_anything_else():
    # Law stays flat in the plan and is 4 % above it after a quarter of the run, so expected 1 % above: half of the
    # 2 % that double a weight, so 1.5 times its .5; (.75, .5) / 1.25 = (.6, .4). Rate and anchor leave `steer` at the
    # start, and there is no KL limit.
    still = {"steer": {"anchor": 1.0}, "safeguards": {"max_kl": None}, "sigma_interval_steps": 25}
    plan = followed(law=2.0, points=track(2.0, 2.0))
    _, decision = decide(controller(plan, **still), [2, 3], [2.08, 3])
    assert decision.acted == ("plan bounds: would end at law +1.0% of +0.0%",)
    assert decision.weights_after == pytest.approx({"law": 0.6, "code": 0.4})


def test_without_a_plan_the_record_has_no_entry_for_it():
    _, decision = decide(controller(), [2, 3], [2.375, 3])
    assert not any("track" in key or "planned" in key for key in decision.signals["law"])
    assert "plan" not in decision.reason
    assert "plan" not in controller().state_dict()


def test_a_resumed_controller_decides_as_the_uninterrupted_one_and_stretches_the_track_of_a_longer_run():
    losses = ([2, 3], [2.25, 3.25], [2.5, 3.125])
    whole = decide(controller(followed()), *losses)
    first = controller(followed())
    decide(first, *losses[:2])
    state = json.loads(json.dumps(first.state_dict()))
    second = controller(followed(law=1.5))  # the plan's file was written again meanwhile
    second.load_state_dict(state)
    again = second.decide_measured(Measurement.of_means(np.array([2.5, 3.125])), step=50, effective_step=53)
    assert again.digest == whole[-1].digest
    longer = controller(followed(num_steps=200))
    longer.load_state_dict(state)
    again = longer.decide_measured(Measurement.of_means(np.array([2.5, 3.125])), step=100, effective_step=103)
    assert again.signals["law"]["track_loss"] == 2.5


def test_a_state_of_an_earlier_version_is_loaded_without_a_plan():
    former = controller()
    decide(former, [2, 3])
    state = former.state_dict()
    for key in ("track_loss_K", "track_stderr_K", "planned_rise_K"):
        del state["history"]["signals"][key]
    loaded = controller()
    loaded.load_state_dict(state)
    assert np.isnan(loaded._history.signals.track_loss_K).all()


def test_a_replay_with_the_plan_gives_the_recorded_digests():
    recorded = decide(controller(followed()), [2, 3], [2.5, 3.25], [2.5, 3.25])
    settings = MixtureConfig(policy="steer", prior="uniform")
    part = Part(settings=settings, references=References(losses_K=np.array([1.0, 2.0])), plan=followed())
    replayed = replay(recorded, parts=[part], domain_set=DOMAINS)
    assert [decision.digest for decision in replayed] == [decision.digest for decision in recorded]


@given(
    points=st.lists(st.floats(0.5, 4.0), min_size=2, max_size=6),
    steps=st.integers(1, 1000),
    share=st.floats(0, 1),
)
def test_a_loss_on_its_track_is_expected_to_end_where_the_plan_ends_also_after_a_round_trip(points, steps, share):
    plan = followed(num_steps=steps, law=points[-1], points=track(2.0, *points))
    step = round(share * steps)
    ratio_K, _ = plan.ratio_at(step)
    # On its track a loss is expected to end where the plan ends.
    assert plan.rise_at_end(ratio_K, np.zeros(2), step=step, z=1.0) == pytest.approx([points[-1] / 2.0 - 1.0, 0.0])
    again = FollowedPlan.from_state_dict(json.loads(json.dumps(plan.state_dict())), num_steps=steps)
    assert again.ratio_at(step)[0].tolist() == ratio_K.tolist()
    assert again.bounds_K.tolist() == plan.bounds_K.tolist()
