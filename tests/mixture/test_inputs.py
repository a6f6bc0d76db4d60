"""Live control: read strictly, recorded exactly."""

from __future__ import annotations

import json

import numpy as np
import pytest

from versatune_ds.domains import DomainSet
from versatune_ds.mixture.inputs import Inputs, read_control, read_control_or_keep
from versatune_ds.mixture.policies import POLICIES

DOMAINS = DomainSet(("law", "code"))


def control(tmp_path, values):
    path = tmp_path / "control.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return read_control(path, domain_set=DOMAINS)


def test_a_missing_or_empty_control_file_sets_nothing(tmp_path):
    assert read_control(tmp_path / "control.json", domain_set=DOMAINS) == Inputs()
    assert control(tmp_path, "") == Inputs()
    assert Inputs().to_dict() == {}


def test_every_key_of_a_control_file_survives_json(tmp_path):
    values = {"pins": {"law": 0.2}, "caps": {"code": 0.5}, "freeze": ["code"], "delta": 0.1, "epsilon": 0.2, "sigma": 1}
    inputs = control(tmp_path, values)
    assert inputs == Inputs(pins={"law": 0.2}, caps={"code": 0.5}, freeze=("code",), delta=0.1, epsilon=0.2, sigma=1.0)
    assert Inputs.from_dict(json.loads(json.dumps(inputs.to_dict()))) == inputs
    assert inputs.rates() == {"sigma": 1.0, "delta": 0.1, "epsilon": 0.2}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("{", "not valid JSON"),
        ([1], "expected a mapping"),
        ({"pin": {}}, "unknown key 'pin'; did you mean 'pins'"),
        ({"pins": {"laws": 0.1}}, "pins: unknown domain 'laws'; did you mean 'law'"),
        ({"pins": {"law": 1.5}}, "pins: law: expected a weight between 0 and 1, got 1.5"),
        ({"pins": {"law": 0.7, "code": 0.7}}, "pins sum to 1.4"),
        ({"freeze": "law"}, "freeze: expected a list of domains, got 'law'"),
        ({"delta": -1}, "delta: expected a number of at least 0, got -1"),
        ({"epsilon": True}, "epsilon: expected a number of at least 0, got True"),
        ({"anchor": 1.5}, "anchor: expected a number between 0 and 1, got 1.5"),
        pytest.param({"sigma": 10**400}, "sigma: expected a number of at least 0, got 1000", id="beyond a float"),
    ],
)
def test_a_wrong_control_file_is_reported_in_one_line_with_file_and_key(tmp_path, values, message):
    with pytest.raises(ValueError, match=message.replace("[", r"\[")) as caught:
        control(tmp_path, values)
    assert str(caught.value).startswith(str(tmp_path / "control.json"))


def test_a_control_file_that_becomes_invalid_leaves_the_last_control_active(tmp_path, caplog):
    path = tmp_path / "control.json"
    kept = Inputs(pins={"law": 0.2}, supply_caps={"code": 0.1})
    path.write_text("{")
    with caplog.at_level("WARNING", logger="versatune_ds"):
        assert read_control_or_keep(path, kept=kept, domain_set=DOMAINS) == Inputs(pins={"law": 0.2})
    assert "not valid JSON" in caplog.text
    path.unlink()
    assert read_control_or_keep(path, kept=kept, domain_set=DOMAINS) == Inputs()


def test_the_rates_of_steer_can_be_set_and_survive_json(tmp_path):
    inputs = control(tmp_path, {"rate": 1, "anchor": 0.25})
    assert Inputs.from_dict(json.loads(json.dumps(inputs.to_dict()))) == inputs
    assert inputs.rates() == {"rate": 1.0, "anchor": 0.25}
    assert inputs.unread_rates(POLICIES["steer"]) == ()
    assert inputs.unread_rates(POLICIES["versatune"]) == ("rate", "anchor")
    assert inputs.unread_rates(POLICIES["uniform"]) == ("rate", "anchor")


def test_only_caps_that_bind_are_recorded():
    inputs = Inputs(delta=0.1).with_supply_caps(np.array([0.2, 1.0]), domain_set=DOMAINS)
    assert inputs.to_dict() == {"supply_caps": {"law": 0.2}, "delta": 0.1}
    assert Inputs().with_supply_caps(None, domain_set=DOMAINS) == Inputs()


def test_interval_stretch_and_signal_are_recorded_unless_default_and_are_not_control():
    inputs = Inputs(pins={"law": 0.2}, supply_caps={"code": 0.1}, interval_stretch=3, signal="train")
    assert Inputs.from_dict(inputs.to_dict()) == inputs
    assert inputs.control() == Inputs(pins={"law": 0.2})
    assert Inputs(interval_stretch=1).to_dict() == {}
