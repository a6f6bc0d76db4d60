"""Weights: checks of what a user wrote, projections, and the mixture at step 0."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from versatune_ds.config import MixtureConfig
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.policies.policy import at_temperature
from versatune_ds.mixture.policies.simplex import inverse_weights, normalise, target_weights, with_share
from versatune_ds.mixture.settings import starting_weights
from versatune_ds.mixture.weights import as_weights, effective_num_domains, kl_divergence, project_to_bounds

DOMAINS = DomainSet(("law", "medicine", "code"))


def start(sizes_K=None, **settings):
    return starting_weights(
        MixtureConfig(**{"policy": "versatune"} | settings), domain_set=DOMAINS, sizes_K=sizes_K
    ).tolist()


def project_to_floor(weights, floor):
    """Return the nearest weights with none below the floor."""
    return project_to_bounds(np.array(weights), lower_K=np.full(len(weights), floor), upper_K=np.ones(len(weights)))


@st.composite
def weights(draw, min_size=2):
    raw = draw(st.lists(st.floats(0, 1), min_size=min_size, max_size=12).filter(lambda values: sum(values) > 1e-3))
    return normalise(np.array(raw))


@pytest.mark.parametrize("values", [[0.5, 0.6], [1.5, -0.5], [float("nan"), 1.0], [float("inf"), 0.0], []])
def test_values_that_are_no_distribution_are_refused_with_the_key(values):
    with pytest.raises(ValueError, match=r"^mixture\.prior: "):
        as_weights(values, "mixture.prior")


def test_the_error_states_the_sum():
    with pytest.raises(ValueError, match=r"the weights sum to 1\.1, expected 1"):
        as_weights([0.5, 0.6], "mixture.prior")


def test_rounding_to_six_digits_is_accepted_and_divided_out():
    assert as_weights([0.333333, 0.333333, 0.333333], "x").sum() == pytest.approx(1.0, abs=1e-15)
    with pytest.raises(ValueError, match="no distribution"):
        as_weights([0.33333, 0.33333, 0.33333], "x")


@given(weights())
def test_checking_weights_twice_changes_no_bit(weights_K):
    once = as_weights(weights_K, "x")
    assert np.array_equal(as_weights(once, "x"), once)


def test_the_effective_number_of_domains_counts_equal_shares():
    assert effective_num_domains(np.full(4, 0.25)) == pytest.approx(4.0)
    assert effective_num_domains(np.array([1.0, 0.0])) == pytest.approx(1.0)
    assert effective_num_domains(np.array([0.5, 0.25, 0.25])) == pytest.approx(2**1.5)


def test_kl_divergence_is_infinite_only_where_weight_comes_from_nothing():
    assert kl_divergence(np.array([0.5, 0.5]), np.array([0.25, 0.75])) == pytest.approx(0.5 * np.log(4 / 3))
    assert kl_divergence(np.array([0.5, 0.5]), np.array([1.0, 0.0])) == float("inf")
    assert kl_divergence(np.array([1.0, 0.0]), np.array([0.5, 0.5])) == pytest.approx(np.log(2))


def test_the_floor_takes_from_the_others_in_proportion():
    assert project_to_floor([0.70, 0.28, 0.02], 0.10) == pytest.approx([0.7 * 0.9 / 0.98, 0.28 * 0.9 / 0.98, 0.1])


def test_a_projection_can_drive_a_second_domain_to_its_bound():
    # 0.05 -> 0.1 shrinks the others by 0.9/0.95, which brings 0.105 to 0.0995: that one must stop at 0.1 as well.
    assert project_to_floor([0.845, 0.105, 0.05], 0.1) == pytest.approx([0.8, 0.1, 0.1])


def test_a_cap_gives_its_excess_to_the_others_also_to_those_at_zero():
    capped = project_to_bounds(np.array([1.0, 0.0]), lower_K=np.zeros(2), upper_K=np.full(2, 0.9))
    assert capped == pytest.approx([0.9, 0.1])


def test_bounds_that_no_weights_meet_are_refused():
    with pytest.raises(ValueError, match="no weights lie between"):
        project_to_bounds(np.array([0.5, 0.5]), lower_K=np.full(2, 0.6), upper_K=np.ones(2))


@given(weights(), st.floats(0, 1), st.floats(0, 1))
def test_a_projection_meets_its_bounds_and_keeps_the_ratios_of_free_domains(weights_K, floor_share, cap_share):
    num_domains = len(weights_K)
    floor, cap = floor_share / num_domains, (1 + cap_share * (num_domains - 1)) / num_domains
    after_K = project_to_bounds(weights_K, lower_K=np.full(num_domains, floor), upper_K=np.full(num_domains, cap))
    assert after_K.sum() == pytest.approx(1.0, abs=1e-9)
    assert np.all(after_K >= floor - 1e-9)
    assert np.all(after_K <= cap + 1e-9)
    is_free = (after_K > floor + 1e-9) & (after_K < cap - 1e-9) & (weights_K > 1e-9)
    ratios = after_K[is_free] / weights_K[is_free]
    assert np.allclose(ratios, ratios[:1], rtol=1e-6)


def test_the_prior_may_be_uniform_proportional_or_a_mapping():
    assert start(prior="uniform") == pytest.approx([1 / 3] * 3)
    assert start([10, 30, 60], prior="proportional") == pytest.approx([0.1, 0.3, 0.6])
    assert start(prior={"code": 0.5, "law": 0.2, "medicine": 0.3}) == [0.2, 0.3, 0.5]


def test_the_prior_may_be_blended_with_uniform():
    prior = {"law": 0.2, "medicine": 0.3, "code": 0.5}
    assert start(prior=prior, prior_uniform_share=0.3) == pytest.approx([0.24, 0.31, 0.45])
    assert start(prior=prior, prior_uniform_share=0.3, policy="inverse") == pytest.approx([0.4, 0.35, 0.25])


def test_a_temperature_moves_the_prior_towards_equal_shares():
    # .1 ** .5 : .9 ** .5 = 1 : 3
    assert at_temperature(np.array([0.1, 0.9]), 2.0) == pytest.approx([0.25, 0.75])
    assert at_temperature(np.array([0.0, 0.1, 0.9]), 2.0) == pytest.approx([0.0, 0.25, 0.75])
    assert start([1, 4, 4], prior="proportional", prior_temperature=2.0) == pytest.approx([0.2, 0.4, 0.4])
    assert start([1, 4, 4], prior="proportional", policy="steer", prior_temperature=2.0) == pytest.approx(
        [0.1 + 0.5 / 3, 0.2 + 0.5 / 3, 0.2 + 0.5 / 3]
    )


@given(hnp.arrays(np.float64, 4, elements=st.floats(1e-6, 1.0)), st.floats(0.01, 1e6), st.floats(1.001, 1e3))
def test_a_higher_temperature_keeps_the_order_and_never_lowers_the_effective_number_of_domains(sizes_K, low, factor):
    cold_K = at_temperature(normalise(sizes_K), low)
    warm_K = at_temperature(normalise(sizes_K), low * factor)
    assert warm_K.sum() == pytest.approx(1.0)
    assert np.all(np.diff(warm_K[np.argsort(sizes_K)]) >= -1e-12)
    assert effective_num_domains(warm_K) >= effective_num_domains(cold_K) - 1e-9


def test_steer_starts_halfway_between_prior_and_uniform_by_default():
    prior = {"law": 0.2, "medicine": 0.3, "code": 0.5}
    assert start(prior=prior, policy="steer") == pytest.approx([0.8 / 3, 0.95 / 3, 1.25 / 3])
    assert start(prior=prior, policy="steer", prior_uniform_share=0.0) == pytest.approx([0.2, 0.3, 0.5])
    assert start(prior=prior, policy="versatune") == pytest.approx([0.2, 0.3, 0.5])


def test_a_share_for_one_domain_leaves_the_ratios_of_the_others():
    assert with_share(np.array([0.2, 0.3, 0.5]), 0, share=0.6) == pytest.approx([0.6, 0.15, 0.25])
    assert with_share(np.array([1.0, 0.0, 0.0]), 0, share=0.6) == pytest.approx([0.6, 0.2, 0.2])


def test_steer_starts_with_its_target_s_share():
    prior = {"law": 0.2, "medicine": 0.3, "code": 0.5}
    settings = {"policy": "steer", "prior_uniform_share": 0.0, "target": "law"}
    assert start(prior=prior, **settings) == pytest.approx([0.5, 0.1875, 0.3125])
    assert start(prior=prior, **settings, target_share=0.6) == pytest.approx([0.6, 0.15, 0.25])
    with pytest.raises(ValueError, match=r"mixture\.target: unknown domain 'x'"):
        start(prior=prior, policy="steer", target="x")


def test_baselines_start_from_their_own_mixture_whatever_the_prior():
    prior = {"law": 0.2, "medicine": 0.3, "code": 0.5}
    assert start(policy="uniform", prior=prior) == pytest.approx([1 / 3] * 3)
    assert start([10, 30, 60], policy="proportional", prior=prior) == pytest.approx([0.1, 0.3, 0.6])
    assert start(policy="inverse", prior=prior) == pytest.approx([0.8 / 2, 0.7 / 2, 0.5 / 2])
    assert start(policy="constant", prior=prior) == [0.2, 0.3, 0.5]
    assert start(policy="target_only", target="medicine", prior=prior) == [0.0, 1.0, 0.0]
    assert start(policy="target_uniform", target="code", target_share=0.6) == pytest.approx([0.2, 0.2, 0.6])
    stages = [[0, {"law": 0.1, "medicine": 0.1, "code": 0.8}], [9, prior]]
    assert start(policy="schedule", schedule=stages) == [0.1, 0.1, 0.8]


def test_a_single_domain_has_all_the_weight():
    assert inverse_weights(np.ones(1)).tolist() == [1.0]
    assert target_weights(0, share=0.5, num_domains=1).tolist() == [1.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prior": {"law": 0.5, "medicine": 0.5}}, r"^mixture\.prior: no value for code"),
        (
            {"prior": {"law": 0.5, "medicine": 0.5, "codes": 0}},
            r"^mixture\.prior: unknown domain 'codes'; did you mean",
        ),
        ({"prior": {"law": 0.5, "medicine": 0.5, "code": 0.5}}, r"^mixture\.prior: no distribution: .* sum to 1\.5"),
        ({"prior": "nowhere.json"}, r"^mixture\.prior: nowhere\.json: no such file; run versatune detect"),
        ({"policy": "target_only", "target": "laws"}, r"^mixture\.target: unknown domain 'laws'; did you mean 'law'"),
        ({"prior": "proportional"}, r"^mixture\.prior: 'proportional' needs the sizes"),
    ],
)
def test_a_wrong_start_is_reported_in_one_line_with_its_key(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        start(**settings)
    assert "\n" not in str(caught.value)


def test_a_domain_without_data_cannot_be_proportional():
    with pytest.raises(ValueError, match="no training data in medicine"):
        start([10, 0, 60])


def test_a_hand_written_prior_file_is_accepted_and_its_missing_provenance_logged(tmp_path, caplog):
    path = tmp_path / "prior.json"
    path.write_text(json.dumps({"weights": {"law": 0.2, "medicine": 0.3, "code": 0.5}}))
    with caplog.at_level(logging.INFO, logger="versatune_ds"):
        assert start(prior=path) == [0.2, 0.3, 0.5]
    assert [record.getMessage() for record in caplog.records] == [
        f"mixture.prior: {path} has no provenance besides 'weights'; taken as written by hand"
    ]


def test_a_detected_prior_file_logs_nothing(tmp_path, caplog):
    path = tmp_path / "prior.json"
    path.write_text(json.dumps({"weights": {"law": 0.2, "medicine": 0.3, "code": 0.5}, "num_samples": 100}))
    with caplog.at_level(logging.INFO, logger="versatune_ds"):
        start(prior=path)
    assert not caplog.records


@pytest.mark.parametrize(
    ("found", "expected"),
    [("tokens", "tokens"), ("examples", "examples"), ("tokens", "loss_tokens"), (None, "examples")],
)
def test_a_prior_file_in_the_unit_of_the_weights_is_accepted(tmp_path, found, expected):
    path = tmp_path / "prior.json"
    path.write_text(json.dumps({"weights": {"law": 0.2, "medicine": 0.3, "code": 0.5}, "weight_unit": found}))
    assert start(prior=path, weight_unit=expected) == [0.2, 0.3, 0.5]


@pytest.mark.parametrize(
    ("found", "expected"), [("tokens", "examples"), ("examples", "tokens"), ("loss_tokens", "tokens")]
)
def test_a_prior_file_in_another_unit_is_refused(tmp_path, found, expected):
    path = tmp_path / "prior.json"
    path.write_text(json.dumps({"weights": {"law": 0.2, "medicine": 0.3, "code": 0.5}, "weight_unit": found}))
    with pytest.raises(ValueError, match=rf"shares of {found}, expected {expected} \(mixture\.weight_unit\); run"):
        start(prior=path, weight_unit=expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"prior\.json:1: not valid JSON"),
        ("[1]", r"expected {key: value}, got \[1\]; correct it, or write it again with versatune detect"),
        ('{"weight": {}}', r'expected {"weights": {domain: number}}, found keys'),
        ('{"weights": {"law": "x", "medicine": 0, "code": 0}}', r"weights\.law: expected a number, got 'x'"),
        ('{"weights": {"law": 1, "medicine": 1, "code": 1}}', r"weights: no distribution"),
    ],
)
def test_a_wrong_prior_file_is_reported_with_key_and_place(tmp_path, text, message):
    path = tmp_path / "prior.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        start(prior=path)
    assert str(caught.value).startswith(f"mixture.prior: {path}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "prior.json: empty; correct it, or write it again with versatune detect"),
        (b"\0" * 512, "prior.json: contains zeros, as after a power failure; correct it, or write it again"),
        (b'{"weights": {"law": 0.5, "me\0\0\0', "prior.json: contains zeros, as after a power failure; correct it"),
        (b'{"weights": {"law": 0.5, "me', "prior.json:1: not valid JSON: "),
        (b'{"weights": {"law": NaN, "medicine": 0.5, "code": 0.5}}', "weights.law: expected a number, got 'nan'"),
        (b'{"weights": {"law": 1e999, "medicine": 0, "code": 0}}', "weights.law: expected a number, got 'inf'"),
        (b'{"weights": {"law": 0.5, "law": 0.5}}', "key 'law' is given twice"),
        (b'{"weights": 3}', 'expected {"weights": {domain: number}}, found weights: 3'),
        (b'{"weights": null}', 'expected {"weights": {domain: number}}, found keys []'),
        (
            b'{"weights": {"law": 1, "medicine": 0, "code": 0}, "weight_unit": [1]}',
            "weight_unit: expected text, got [1]",
        ),
        (b"\xff\xfe{}", "not a text file; expected JSON in UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_an_unreadable_prior_file_is_reported_in_one_line_with_the_remedy(tmp_path, content, message):
    path = tmp_path / "prior.json"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the text is compared)
        start(prior=path)
    assert str(caught.value).startswith(f"mixture.prior: {path}")
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_as_prior_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a folder; expected the JSON file that versatune detect writes"):
        start(prior=tmp_path)
