"""A run that starts from a plan logs how it takes it."""

import json
import logging

import pytest
from plans import plan_content

from versatune_ds.config.load import parse_config
from versatune_ds.training.mixture_start import plan_of_start


def config(prior, *, steps=40, **mixture):
    return parse_config(
        {
            "run": {"name": "r"},
            "model": {"from_config": {"model_type": "llama"}},
            "data": {"synthetic": {}},
            "train": {"steps": steps},
            "mixture": {"prior": str(prior), "reference": {"start_fraction": 0.5}, **mixture},
        }
    )


def test_a_plan_is_taken_as_it_is_and_the_log_has_the_share_of_uniform(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="versatune_ds")
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan_content()))
    assert plan_of_start(config(path)).to_dict()["weights"] == plan_content()["weights"]
    plan_of_start(config(path, prior_uniform_share=0.25))
    opening = f"mixture.prior: {path} is a plan for balanced,"
    assert [message for message in caplog.messages if "is a plan" in message] == [
        f"{opening} taken as it is (mixture.prior_uniform_share: 0)",
        f"{opening} blended with 25% uniform (mixture.prior_uniform_share: 0.25)",
    ]


TRACK = [{"fraction": fraction, "losses": {"law": 3.5}, "stderrs": {"law": 0.125}} for fraction in (0, 1)]


@pytest.mark.parametrize(
    ("entries", "keys", "expected"),
    [
        ({"track": TRACK, "bounds": {"law": 0.03}}, {}, "bounds kept: law +3.0%; its predicted course is recorded"),
        ({"track": [], "bounds": {}}, {}, "bounds kept: none; planner transfer predicts no course"),
        ({}, {}, "only its weights are used: it has no track (an earlier version); write it again with versatune plan"),
        ({"track": TRACK}, {"steer": {"follow_plan": False}}, "only its weights are used (mixture.steer.follow_plan"),
        ({"track": TRACK}, {"prior_uniform_share": 0.5}, "only its weights are used: blended with uniform (0.5)"),
        ({"track": TRACK}, {"prior_temperature": 3}, "only its weights are used: at temperature 3 (mixture.prior_temp"),
    ],
)
def test_the_log_has_one_line_on_what_steer_follows_of_a_plan(tmp_path, caplog, entries, keys, expected):
    caplog.set_level(logging.INFO, logger="versatune_ds")
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan_content(**entries)))
    plan_of_start(config(path, policy="steer", **keys))
    first, line = caplog.messages
    assert line.startswith(f"mixture.prior: {path}: {expected}")
    assert ("taken as it is" in first) == (not keys.keys() & {"prior_uniform_share", "prior_temperature"})


def test_a_policy_that_follows_no_plan_logs_nothing_of_it(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="versatune_ds")
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan_content(track=TRACK)))
    plan_of_start(config(path, policy="constant"))
    assert len(caplog.messages) == 1


def test_a_plan_for_a_run_of_another_length_is_warned_of(tmp_path, caplog):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan_content()))
    caplog.set_level(logging.WARNING, logger="versatune_ds")
    plan_of_start(config(path, steps=80))
    assert caplog.messages == [
        f"mixture.prior: {path} predicts a run of 40 steps, this one has 80 (train.steps): plan again with this recipe"
    ]


def test_a_prior_that_is_no_plan_and_a_policy_that_reads_no_prior_log_nothing(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="versatune_ds")
    plan, prior = tmp_path / "plan.json", tmp_path / "prior.json"
    plan.write_text(json.dumps(plan_content()))
    prior.write_text(json.dumps({"weights": plan_content()["weights"], "method": "both"}))
    assert plan_of_start(config(prior)) is None
    assert plan_of_start(config(plan, policy="uniform")) is None
    assert caplog.messages == []
