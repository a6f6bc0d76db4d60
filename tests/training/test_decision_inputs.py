"""Live control and supply enter decisions through the record, so that resume stays exact."""

import json

import numpy as np
import pytest

from versatune_ds.domains import DomainSet
from versatune_ds.mixture.policies import POLICIES
from versatune_ds.training.decision_inputs import DecisionInputs, SupplyLimits

DOMAINS = DomainSet(("law", "code"))
NOTHING = {"draws_K": np.zeros(2, dtype=np.int64), "units_drawn": 0.0}


def limits(**values):
    return SupplyLimits(
        **{
            "num_examples_K": np.array([100, 100]),
            "units_per_pass_K": np.array([1000.0, 1000.0]),
            "max_epochs": 2.0,
            "num_steps": 20,
            **values,
        }
    )


def inputs_of(tmp_path, supply=None, policy="versatune"):
    return DecisionInputs(tmp_path, domain_set=DOMAINS, policy=POLICIES[policy], limits=supply)


def write_control(tmp_path, **values):
    (tmp_path / "control.json").write_text(json.dumps(values))


def write_decisions(tmp_path, decisions):
    lines = [json.dumps({"decided_at_step": step, "inputs": inputs}) + "\n" for step, inputs in decisions.items()]
    (tmp_path / "decisions.jsonl").write_text("".join(lines))


def test_a_cap_is_the_share_of_the_remaining_run_that_the_remaining_data_can_serve():
    caps_K = limits().caps(step=10, draws_K=np.array([150, 0]), units_drawn=4000.0)
    assert caps_K.tolist() == [500 / 4000, 2000 / 4000]


def test_a_domain_without_remaining_data_has_cap_zero_and_one_with_plenty_is_not_capped():
    caps_K = limits(max_epochs=9.0).caps(step=10, draws_K=np.array([900, 0]), units_drawn=4000.0)
    assert caps_K.tolist() == [0.0, 1.0]


def test_there_are_no_caps_before_the_first_step_and_none_that_bind_after_the_last():
    assert limits().caps(step=0, draws_K=np.array([0, 0]), units_drawn=0.0) is None
    assert limits().caps(step=20, draws_K=np.array([150, 0]), units_drawn=8000.0).tolist() == [1.0, 1.0]


def test_a_domain_without_examples_has_cap_zero():
    empty = limits(num_examples_K=np.array([0, 100]), units_per_pass_K=np.array([0.0, 1000.0]))
    assert empty.caps(step=1, draws_K=np.array([0, 10]), units_drawn=100.0)[0] == 0.0


def test_the_control_file_is_read_at_every_decision_and_its_changes_are_reported(tmp_path, caplog):
    caplog.set_level("INFO", logger="versatune_ds")
    inputs = inputs_of(tmp_path)
    assert inputs.at(0, **NOTHING).to_dict() == {}
    write_control(tmp_path, pins={"law": 0.5})
    assert inputs.at(4, **NOTHING).to_dict() == inputs.at(8, **NOTHING).to_dict() == {"pins": {"law": 0.5}}
    (tmp_path / "control.json").unlink()
    assert inputs.at(12, **NOTHING).to_dict() == {}
    messages = [record.message for record in caplog.records]
    assert messages == ['live control: {"pins": {"law": 0.5}}', "live control: none any more"]


def test_a_rate_that_the_policy_does_not_read_is_reported_once(tmp_path, caplog):
    for policy, messages in (("steer", ["live control: policy steer does not read sigma"]), ("versatune", [])):
        caplog.clear()
        inputs = inputs_of(tmp_path, policy=policy)
        write_control(tmp_path, sigma=0.5, **({"rate": 0.5} if policy == "steer" else {}))
        inputs.at(4, **NOTHING)
        inputs.at(8, **NOTHING)
        assert [record.message for record in caplog.records if record.levelname == "WARNING"] == messages


def test_a_mistake_in_the_control_file_keeps_the_last_valid_control_active(tmp_path, caplog):
    inputs = inputs_of(tmp_path)
    write_control(tmp_path, pins={"law": 0.5})
    inputs.at(4, **NOTHING)
    write_control(tmp_path, pins={"lwa": 0.7})
    assert inputs.at(8, **NOTHING).to_dict() == {"pins": {"law": 0.5}}
    assert "unknown domain 'lwa'; did you mean 'law'?" in caplog.text


def test_an_input_has_both_control_and_supply_caps(tmp_path):
    write_control(tmp_path, caps={"code": 0.9})
    found = inputs_of(tmp_path, limits()).at(10, draws_K=np.array([150, 0]), units_drawn=4000.0)
    assert found.to_dict() == {"caps": {"code": 0.9}, "supply_caps": {"law": 0.125, "code": 0.5}}


def test_a_resumed_run_repeats_recorded_inputs_and_then_reads_the_file(tmp_path):
    write_decisions(tmp_path, {0: {}, 4: {"delta": 0.1}, 8: {"pins": {"law": 0.25}, "supply_caps": {"code": 0.5}}})
    write_control(tmp_path, freeze=["code"])
    inputs = inputs_of(tmp_path)
    inputs.resume_after(5)
    assert inputs.at(8, **NOTHING).to_dict() == {"pins": {"law": 0.25}, "supply_caps": {"code": 0.5}}
    assert inputs.at(12, **NOTHING).to_dict() == {"freeze": ["code"]}


def test_a_resume_keeps_the_active_control_while_the_file_has_a_mistake(tmp_path):
    write_decisions(tmp_path, {0: {}, 4: {"pins": {"law": 0.25}, "supply_caps": {"code": 0.5}}})
    (tmp_path / "control.json").write_text("{")
    inputs = inputs_of(tmp_path)
    inputs.resume_after(5)
    assert inputs.at(8, **NOTHING).to_dict() == {"pins": {"law": 0.25}}


@pytest.mark.parametrize("end", ['{"decided_at_', '{"decided_at_step": 8}', "[]"])
def test_a_record_with_a_corrupt_end_is_read_up_to_it(tmp_path, end):
    write_decisions(tmp_path, {0: {}, 4: {"delta": 0.1}})
    with (tmp_path / "decisions.jsonl").open("a") as file:
        file.write(end)
    inputs = inputs_of(tmp_path)
    inputs.resume_after(0)
    assert inputs.at(4, **NOTHING).to_dict() == {"delta": 0.1}
    assert inputs.at(8, **NOTHING).to_dict() == {}


def test_a_repeated_decision_uses_its_recorded_interval_whatever_the_clock_measures(tmp_path):
    write_decisions(tmp_path, {4: {"interval_stretch": 3}, 16: {"interval_stretch": 5}})
    inputs = inputs_of(tmp_path)
    inputs.resume_after(4)
    assert inputs.at(16, **NOTHING, interval_stretch=9).interval_stretch == 5
    assert inputs.at(36, **NOTHING, interval_stretch=9).interval_stretch == 9
