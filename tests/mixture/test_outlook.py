"""The warnings about a run's decisions start from the weights of step 0, and name the policy's own keys."""

from itertools import pairwise

import numpy as np

from versatune_ds.config import MixtureConfig
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.decision import Decision
from versatune_ds.mixture.offline.outlook import bounds_line, collapse_warnings, still_warnings
from versatune_ds.mixture.policies import POLICIES

DOMAINS = DomainSet(("law", "code", "art", "news"))
START = (0.25, 0.25, 0.25, 0.25)
ONE = (1.0, 0.0, 0.0, 0.0)


def decisions_of(*weights):
    """Return one decision after every 10 steps that moves the weights on, from the first ones given."""
    by_domain = [dict(zip(DOMAINS, w, strict=True)) for w in weights]
    return [
        Decision(
            update=i, decided_at_step=10 * i, effective_step=10 * i + 3, losses={}, signals={}, acted=(), reason="",
            weights_before=before, weights_after=after,
        )
        for i, (before, after) in enumerate(pairwise(by_domain))
    ]  # fmt: skip


def test_a_collapse_before_training_is_reported_with_the_policys_own_key():
    decisions = decisions_of(START, ONE, ONE)
    (warning,) = collapse_warnings(decisions, policy=POLICIES["steer"], domain_set=DOMAINS)
    assert warning == (
        "collapse: the effective number of domains fell from 4.00 to 1.00 by step 0; raise mixture.steer.anchor or "
        "raise mixture.safeguards.prior_pull"
    )
    (warning,) = collapse_warnings(decisions, policy=POLICIES["versatune"], domain_set=DOMAINS)
    assert "lower mixture.sigma or raise" in warning


def test_a_mixture_that_moves_only_before_training_gives_no_warning():
    assert still_warnings(decisions_of(START, ONE, ONE), policy=POLICIES["steer"], domain_set=DOMAINS) == []


def test_a_mixture_that_never_moves_is_explained_by_the_keys_of_its_policy():
    decisions = decisions_of(START, START, START)
    (warning,) = still_warnings(decisions, policy=POLICIES["steer"], domain_set=DOMAINS)
    assert "mixture.steer.rate is small or mixture.steer.anchor near 1" in warning
    (warning,) = still_warnings(decisions, policy=POLICIES["versatune"], domain_set=DOMAINS)
    assert "the potentials are nearly equal or sigma is small" in warning


def at_bounds(*weights, **settings):
    settings = MixtureConfig(reference={"start_fraction": 0.5}, **settings)
    return bounds_line(settings, start_K=np.array(weights), domain_set=DOMAINS)


def test_weights_that_start_at_a_bound_are_listed_with_it():
    assert at_bounds(0.25, 0.25, 0.25, 0.25) is None
    assert at_bounds(0.925, 0.025, 0.025, 0.025) == (
        "step 0 starts with code, art, news at the floor of 0.025, below which no weight falls; and law (0.925) at or "
        "above the cap of 0.9, to which the first update lowers it"
    )
    assert at_bounds(0.5, 0.3, 0.1, 0.1, safeguards={"cap": 0.5}).startswith("step 0 starts with law (0.5) at or above")
    assert at_bounds(0.925, 0.025, 0.025, 0.025, policy="constant") is None, "a fixed mixture has no bounds"
    target = {"policy": "steer", "target": "law", "target_share": 0.5, "safeguards": {"cap": 0.5}}
    assert at_bounds(0.5, 0.2, 0.2, 0.1, **target) is None, "the share of the target was asked for"
