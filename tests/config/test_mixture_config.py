"""The mixture section: what it accepts, and one line for each mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from plans import plan_content

from versatune_ds.config.load import parse_config
from versatune_ds.config.mixture import MixtureConfig
from versatune_ds.config.mixture_sections import StartFraction

RECIPE = {
    "run": {"name": "x"},
    "model": {"from_config": {"model_type": "llama"}},
    "data": {"folder": "d"},
    "train": {"steps": 10},
}


def mixture(**section):
    return parse_config(RECIPE | {"mixture": section}).mixture


def test_an_empty_section_uses_steer_with_safeguards():
    section = mixture()
    assert (section.policy, section.prior, section.reference, section.paper) == (
        "steer",
        "proportional",
        None,
        False,
    )
    assert (section.steer.rate, section.steer.anchor, section.steer.potential) == (0.8, 0.5, "nats")
    assert section.prior_uniform_share == 0.5
    assert section.sigma == 0.5
    assert section.sigma_interval_steps == 50


@pytest.mark.parametrize(("policy", "of_prior"), [("steer", 0.5), ("versatune", 0.0)])
def test_a_prior_file_that_is_a_plan_is_not_blended_with_uniform_by_default(tmp_path, policy, of_prior):
    plan, prior, corrupt = (tmp_path / name for name in ("plan.json", "prior.json", "corrupt.json"))
    plan.write_text(json.dumps(plan_content()))
    prior.write_text(json.dumps({"weights": plan_content()["weights"], "method": "both"}))
    corrupt.write_text("{")
    assert mixture(policy=policy, prior=str(plan)).prior_uniform_share == 0.0
    assert mixture(policy=policy, prior=str(plan), prior_uniform_share=0.25).prior_uniform_share == 0.25
    for other in (prior, corrupt, tmp_path / "missing.json"):
        assert mixture(policy=policy, prior=str(other)).prior_uniform_share == of_prior


def test_paper_mode_uses_the_papers_policy_unless_the_recipe_sets_one():
    assert mixture(paper=True).policy == "versatune"
    assert mixture(paper=True, policy="expansion", target="law").policy == "expansion"
    assert mixture(paper="true").policy == "versatune"
    assert mixture(paper=False).policy == "steer"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("reference.json", Path("reference.json")),
        ({"law": 1, "code": 2.5}, {"law": 1.0, "code": 2.5}),
        ({"start_fraction": 0.85}, StartFraction(start_fraction=0.85)),
    ],
)
def test_a_reference_is_a_file_a_mapping_a_fraction_or_nothing(value, expected):
    assert mixture(reference=value).reference == expected


@pytest.mark.parametrize(
    ("value", "expected"), [("uniform", "uniform"), ("prior.json", Path("prior.json")), ({"law": 1}, {"law": 1.0})]
)
def test_a_prior_is_a_rule_a_file_or_a_mapping(value, expected):
    assert mixture(prior=value).prior == expected


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"reference": {"start_fraction": 2}},
            "mixture.reference.start_fraction: expected a number between 0 and 1, got 2",
        ),
        (
            {"reference": {"start_fraction": "half"}},
            "mixture.reference.start_fraction: expected a number between 0 and 1, got 'half'",
        ),
        (
            {"reference": {"start_fraction": 0.5, "law": 1}},
            "mixture.reference: expected start_fraction alone, found also law; leave them out",
        ),
        ({"reference": {"law": "x"}}, "mixture.reference.law: expected a number, got 'x'"),
        ({"reference": 5}, "mixture.reference: expected a file, a mapping or start_fraction, got 5"),
        ({"prior": {"law": None}}, "mixture.prior.law: expected a number, got null"),
        ({"prior": 3}, "mixture.prior: expected uniform, proportional, a mapping or a file, got 3"),
        (
            {"policy": "steer", "paper": True},
            "mixture.paper: policy 'steer' is not in the paper; set mixture.policy=versatune as well",
        ),
        (
            {"target": "law", "target_share": 0.95},
            (
                "mixture.target_share: 0.95 is more than a domain may have, 0.9 (mixture.safeguards.cap); lower the "
                "share or raise the cap"
            ),
        ),
        ({"policy": "versatun"}, "mixture.policy: unknown policy 'versatun'; did you mean 'versatune'?"),
        (
            {"policy": "expansion"},
            "mixture.target: policy 'expansion' needs it; name the domain to strengthen",
        ),
        (
            {"policy": "schedule"},
            "mixture.schedule: policy 'schedule' needs stages, the first with step: 0",
        ),
        (
            {"policy": "schedule", "schedule": [[0, {"a": 1}], [0, {"a": 1}]]},
            "mixture.schedule: the steps of stages must rise, got [0, 0]",
        ),
        ({"sigmaa": 1}, "mixture.sigmaa: unknown key; did you mean 'sigma'?"),
        ({"safeguards": {"flor": 0.1}}, "mixture.safeguards.flor: unknown key; did you mean 'floor'?"),
        (
            {"safeguards": {"floor": -1}},
            "mixture.safeguards.floor: expected 0 or more (got -1)",
        ),
        ({"update_every": 0}, "mixture.update_every: expected 1 or more (got 0)"),
    ],
)
def test_a_mistake_is_reported_in_one_line_with_its_key(section, message):
    with pytest.raises(ValueError, match=r"^mixture\.") as caught:
        mixture(**section)
    assert str(caught.value) == message


def test_the_resolved_section_can_be_read_again_unchanged():
    section = mixture(
        policy="schedule",
        schedule=[[0, {"law": 0.4, "code": 0.6}], {"step": 9, "weights": {"law": 1, "code": 0}}],
        reference={"start_fraction": 0.5},
        prior="prior.json",
        safeguards={"max_kl": None},
    )
    assert MixtureConfig.model_validate(section.model_dump(mode="json")) == section
