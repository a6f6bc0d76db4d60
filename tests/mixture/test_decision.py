"""Decisions: exact round trips, and digests that change with every field."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import numpy as np
import pytest

from versatune_ds.domains import DomainSet
from versatune_ds.mixture.decision import Decision, by_domain

DOMAINS = DomainSet(("law", "code"))


def decision_of(**changes):
    values = {
        "update": 1,
        "decided_at_step": 50,
        "effective_step": 53,
        "losses": {"law": {"mean": 0.1 + 0.2, "stderr": None, "num_loss_tokens": 7}},
        "signals": {"law": {"learnable_potential": 1 / 3}},
        "weights_before": {"law": 0.5, "code": 0.5},
        "weights_after": {"law": 1 / 3, "code": 2 / 3},
        "acted": ("floor: code",),
        "reason": "because",
    }
    decision = Decision(**values | changes)
    return replace(decision, digest=decision.computed_digest())


def test_a_decision_survives_json_exactly():
    decision = decision_of()
    again = Decision.from_json(decision.to_json())
    assert again == decision
    assert again.to_json() == decision.to_json()
    assert again.weights_after["law"].hex() == (1 / 3).hex()
    again.verify()


def test_a_decision_has_the_fields_that_scripts_rely_on():
    assert list(json.loads(decision_of().to_json())) == [
        "update", "decided_at_step", "effective_step", "losses", "signals", "weights_before", "weights_after",
        "acted", "reason", "inputs", "digest",
    ]  # fmt: skip


@pytest.mark.parametrize("name", [item.name for item in fields(Decision) if item.name != "digest"])
def test_changing_any_field_invalidates_the_digest(name):
    changed = {
        "acted": (),
        "reason": "why not",
        "inputs": {"delta": 0.1},
        "losses": {},
        "signals": {},
        "weights_before": {"law": 0.4, "code": 0.6},
        "weights_after": {"law": np.nextafter(1 / 3, 1), "code": 2 / 3},
    }.get(name, 99)
    with pytest.raises(RuntimeError, match=r"digest .* does not match"):
        replace(decision_of(), **{name: changed}).verify()


def test_the_digest_does_not_depend_on_the_order_of_keys():
    one, other = decision_of(), decision_of(weights_after={"code": 2 / 3, "law": 1 / 3})
    assert one.digest == other.digest


def test_nan_becomes_null_and_counts_stay_integers():
    columns = {"mean": np.array([1.5, np.nan]), "stderr": np.array([np.inf, 0.5]), "num": np.array([3, 0])}
    assert by_domain(columns, domain_set=DOMAINS) == {
        "law": {"mean": 1.5, "stderr": None, "num": 3},
        "code": {"mean": None, "stderr": 0.5, "num": 0},
    }


@pytest.mark.parametrize("line", ["{", "[]", '{"update": 1}', decision_of().to_json().replace("reason", "raison")])
def test_a_line_that_is_not_a_decision_is_refused(line):
    with pytest.raises(RuntimeError, match="decision"):
        Decision.from_json(line)


def test_weights_are_returned_in_the_order_of_the_domains():
    assert decision_of().weights_K(DomainSet(("code", "law"))).tolist() == [2 / 3, 1 / 3]
