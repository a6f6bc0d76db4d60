"""The floor applies from the first step on, if there is one; a starting weight of 0 gives a warning."""

import numpy as np
import pytest

from versatune_ds.config import MixtureConfig
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.offline.outlook import start_warnings
from versatune_ds.mixture.settings import guarded_start, starting_weights

DOMAINS = DomainSet(("law", "code", "art"))


def start(prior, **settings):
    """Return (weights of the recipe, weights of step 0, warnings)."""
    mixture = MixtureConfig(prior=prior, reference={"start_fraction": 0.5}, **settings)
    named_K = starting_weights(mixture, domain_set=DOMAINS, sizes_K=None)
    start_K = guarded_start(mixture, named_K, domain_set=DOMAINS)
    return named_K, start_K, start_warnings(mixture, named_K=named_K, start_K=start_K, domain_set=DOMAINS)


def test_a_weight_of_zero_starts_at_the_floor_and_the_others_keep_their_ratio():
    _, start_K, (warning,) = start({"law": 0.75, "code": 0.25, "art": 0.0}, policy="versatune")
    floor = 0.1 / 3
    assert start_K == pytest.approx([0.75 * (1 - floor), 0.25 * (1 - floor), floor])
    assert warning == (
        "mixture.prior: the floor of 0.03333 raises the starting weight of art (from 0); give more weight there, or "
        "lower mixture.safeguards.floor"
    )


def test_weights_above_the_floor_stay_bit_for_bit():
    named_K, start_K, warnings = start({"law": 0.7, "code": 0.2, "art": 0.1}, policy="versatune")
    assert start_K is named_K
    assert warnings == []


@pytest.mark.parametrize(
    ("settings", "because"),
    [
        ({"policy": "constant"}, "policy 'constant' has no floor"),
        ({"policy": "versatune", "paper": True}, "mixture.paper switches the floor off"),
        ({"policy": "versatune", "safeguards": {"floor": 0.0}}, "mixture.safeguards.floor is 0"),
    ],
)
def test_without_a_floor_a_weight_of_zero_stays_and_gives_a_warning(settings, because):
    named_K, start_K, (warning,) = start({"law": 0.5, "code": 0.5, "art": 0.0}, **settings)
    assert np.array_equal(named_K, start_K)
    assert warning == (
        f"mixture.prior: art begins at weight 0 and may never be trained on ({because}); give it weight, or leave the "
        "domain out"
    )


def test_a_target_that_starts_at_zero_is_raised_too():
    _, start_K, (warning,) = start({"law": 0.5, "code": 0.5, "art": 0.0}, policy="expansion", target="art")
    assert start_K[2] == pytest.approx(0.1 / 3)
    assert "art (from 0)" in warning


def test_steers_target_keeps_its_share():
    prior = {"law": 0.0, "code": 0.5, "art": 0.5}
    _, start_K, _ = start(prior, policy="steer", target="art", target_share=0.6, prior_uniform_share=0.0)
    assert start_K == pytest.approx([0.1 / 3, 0.4 - 0.1 / 3, 0.6])


def test_a_policy_that_intends_a_weight_of_zero_gives_no_warning():
    assert start("uniform", policy="target_only", target="law")[2] == []
    stages = [[0, {"law": 1.0, "code": 0.0, "art": 0.0}], [10, {"law": 0.0, "code": 1.0, "art": 0.0}]]
    (warning,) = start("uniform", policy="schedule", schedule=stages)[2]
    assert warning.startswith("mixture.schedule: art begins at weight 0")
