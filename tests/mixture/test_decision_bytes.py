"""A decision as bytes: every number and text arrives as it was sent, and a changed byte is found."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from versatune_ds.mixture.decision import Decision
from versatune_ds.mixture.decision_bytes import packed_decision, unpacked_decision


def decision_of(**changes):
    values = {
        "update": 3,
        "decided_at_step": 150,
        "effective_step": 153,
        "losses": {
            "law": {"mean": 0.1, "stderr": None, "num_loss_tokens": 2**53 - 1},
            "code ½": {"mean": -0.0, "stderr": 5e-324, "num_loss_tokens": 0},
        },
        "signals": {"law": {"forgetting_degree": None}, "code ½": {"forgetting_degree": 1 / 3}},
        "weights_before": {"law": 0.5, "code ½": 0.5},
        "weights_after": {"law": 0.1, "code ½": 0.9},
        "acted": ("floor: law",),
        "reason": "why ½",
        "inputs": {"train_losses": {"law": 0.7, "code ½": 0.3}, "caps": {"law": 0.2}, "freeze": ["law"], "sigma": 1},
    }
    decision = Decision(**values | changes)
    return Decision(**values | changes, digest=decision.computed_digest())


def assert_arrives(decision):
    arrived = unpacked_decision(packed_decision(decision))
    assert arrived.to_json() == decision.to_json()  # order, digits, signs, and whether a number is whole
    arrived.verify()


def test_a_decision_arrives_with_every_number_and_its_order():
    assert_arrives(decision_of())


@pytest.mark.parametrize(
    "changes",
    [
        {"losses": {}, "signals": {}, "inputs": {}},
        {"losses": {"law": {"mean": 1.0}, "code ½": {"mean": 2}}},  # one whole, one not
        {"losses": {"law": {"mean": 2**53 + 1}, "code ½": {"mean": 1}}},  # not a float64
        {"losses": {"code ½": {"mean": 1.0}, "law": {"mean": 2.0}}},  # another order
        {"signals": {"law": {"a": 1.0}, "code ½": {"b": 1.0}}},
        {"signals": {"law": {}, "code ½": {}}},
        {"weights_before": {"law": 1, "code ½": 0}, "weights_after": {"law": 0, "code ½": 1}},
        {"weights_before": {}, "weights_after": {}, "losses": {}, "signals": {}},
    ],
)
def test_a_decision_of_another_form_arrives_unchanged_too(changes):
    assert_arrives(decision_of(**changes))


numbers = st.floats(allow_nan=False, allow_infinity=False)
names = st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=6, unique=True)


@settings(max_examples=50, deadline=None)
@given(data=st.data(), names=names)
def test_any_finite_numbers_of_any_domains_arrive_unchanged(data, names):
    def by_domain(values):
        return {name: data.draw(values) for name in names}

    row = st.fixed_dictionaries({"mean": numbers | st.none(), "num_loss_tokens": st.integers(0, 2**53 - 1)})
    assert_arrives(
        decision_of(
            losses=by_domain(row),
            signals=by_domain(st.fixed_dictionaries({"a": numbers, "b": numbers | st.none()})),
            weights_before=by_domain(numbers),
            weights_after=by_domain(numbers),
            inputs={"train_losses": by_domain(numbers), "interval_stretch": 2},
        )
    )


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("place", "changes"),
    [
        ("losses.mean", lambda x: {"losses": {"law": {"mean": x}, "code ½": {"mean": None}}}),
        ("weights_after", lambda x: {"weights_after": {"law": 0.1, "code ½": x}}),
        ("inputs.caps", lambda x: {"inputs": {"caps": {"law": x, "code ½": 0.3}}}),
        ("not JSON compliant", lambda x: {"inputs": {"sigma": x}}),
    ],
)
def test_a_number_that_is_not_finite_is_refused_as_in_a_line_of_json(number, place, changes):
    decision = replace(decision_of(), **changes(number))
    with pytest.raises(ValueError, match="not JSON compliant"):
        decision.to_json()
    with pytest.raises(ValueError, match=place):
        packed_decision(decision)


@pytest.mark.parametrize("position", [0, 20, 100, -1])
def test_a_changed_byte_is_found(position):
    packed = bytearray(packed_decision(decision_of()))
    packed[position] ^= 1
    with pytest.raises(RuntimeError, match="arrived otherwise than rank 0 sent it"):
        unpacked_decision(bytes(packed))


def test_numbers_of_256_domains_take_eight_bytes_each():
    names = [f"domain{k:03}" for k in range(256)]
    rows = {name: {f"signal{i}": math.sqrt(i + k) for i in range(11)} for k, name in enumerate(names)}
    weights = dict.fromkeys(names, 1 / 256)
    packed = packed_decision(
        decision_of(losses={}, signals=rows, weights_before=weights, weights_after=weights, inputs={})
    )
    num_numbers = 256 * 13
    assert 8 * num_numbers < len(packed) < 8 * num_numbers + 256 * 16 + 1500
