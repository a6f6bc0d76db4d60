"""References: where they come from, and which are refused or give a warning."""

from __future__ import annotations

import dataclasses
import json
import logging

import numpy as np
import pytest

from versatune_ds.config import MixtureConfig
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.reference import (
    References,
    check_against_start,
    check_provenance,
    load_references,
    memorisation_warnings,
    weak_against_start,
)

DOMAINS = DomainSet(("law", "code"))


def references(law, code, **provenance):
    return References(losses_K=np.array([law, code]), origin="reference.json", provenance=provenance)


def load(**settings):
    return load_references(MixtureConfig(**settings), domain_set=DOMAINS)


@pytest.mark.parametrize("policy", ["versatune", "steer", "doremi", "sheared"])
def test_missing_references_are_an_error_with_the_remedy(policy):
    with pytest.raises(
        ValueError, match=r"run versatune reference .* mixture\.reference to .*start_fraction: 0\.85"
    ) as caught:
        load(policy=policy)
    assert "start_fraction" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("policy", ["uniform", "constant", "inverse", "proportional", "authors_code", "odm"])
def test_policies_without_references_need_none(policy):
    assert np.isnan(load(policy=policy).at_start(np.array([2.0, 3.0]))).all()


def test_a_start_fraction_gives_references_from_the_first_losses():
    loaded = load(reference={"start_fraction": 0.85})
    assert loaded.at_start(np.array([2.0, 4.0])) == pytest.approx([1.7, 3.4])


def test_a_mapping_gives_the_losses_in_the_order_of_the_domains():
    assert load(reference={"code": 2.0, "law": 1.0}).at_start(np.array([9.0, 9.0])).tolist() == [1.0, 2.0]


def test_a_hand_written_file_is_accepted_and_its_missing_provenance_logged(tmp_path, caplog):
    path = tmp_path / "reference.json"
    path.write_text(json.dumps({"losses": {"law": 1.0, "code": 2.0}}))
    with caplog.at_level(logging.INFO, logger="versatune_ds"):
        assert load(reference=path).losses_K.tolist() == [1.0, 2.0]
    assert "taken as written by hand" in caplog.text


def test_a_file_keeps_its_provenance(tmp_path):
    path = tmp_path / "reference.json"
    path.write_text(json.dumps({"losses": {"law": 1.0, "code": 2.0}, "digests": {"tokenizer": "ab"}}))
    assert load(reference=path).provenance == {"digests": {"tokenizer": "ab"}}


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ({"law": 1.0}, r"^mixture\.reference: no value for code"),
        ({"law": 1.0, "code": -1.0}, r"^mixture\.reference: code: expected a positive loss"),
        ({"law": 1.0, "code": float("nan")}, r"mixture\.reference\.code: expected a number, got nan"),
        ("nowhere.json", r"^mixture\.reference: nowhere\.json: no such file; run versatune reference"),
    ],
)
def test_wrong_references_are_reported_in_one_line_with_the_key(reference, message):
    with pytest.raises(ValueError, match=message):
        load(reference=reference)


START_K = np.array([2.0, 4.0])


def check(refs, **keys):
    return check_against_start(refs, start_K=START_K, domain_set=DOMAINS, **keys)


def test_plausible_references_give_no_warning():
    assert check(references(1.5, 3.0)) == []
    assert check(References(start_fraction=0.01)) == []


def test_memorised_references_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"exceeds 0\.95 in all domains.*memorised.*held-out rows"):
        check(references(0.0001, 0.001))


def test_references_above_every_loss_are_refused():
    with pytest.raises(ValueError, match="at or above the model's own first loss"):
        check(references(2.0, 5.0))


def test_a_refusal_can_be_turned_into_a_warning():
    assert len(check(references(0.0001, 0.001), is_refused=False)) == 1


def test_a_single_bad_reference_is_a_warning_with_its_domain():
    assert [w.split(": ")[1] for w in check(references(2.5, 3.0))] == ["law (2.5000, first loss 2.0000)"]
    assert [w.split(": ")[1] for w in check(references(1.5, 0.01))] == ["code (0.0100, first loss 4.0000)"]


def test_the_same_fault_of_several_domains_is_one_warning():
    faulty = dataclasses.replace(references(2.5, 4.0), provenance={"train_losses": {"law": 0.1, "code": 0.1}})
    (above,) = weak_against_start(faulty, start_K=START_K, domain_set=DOMAINS)
    assert ": law (2.5000, first loss 2.0000), code (4.0000, first loss 4.0000): the reference is not below" in above
    (memorised,) = memorisation_warnings(faulty, domain_set=DOMAINS)
    assert ": law (training loss 0.1000, held-out loss 2.5000), code (training loss 0.1000" in memorised


def test_domains_not_yet_measured_are_not_checked():
    assert check_against_start(references(0.0001, 3.0), start_K=np.array([np.nan, 4.0]), domain_set=DOMAINS) == []


def test_another_tokenizer_is_refused_and_unknown_digests_are_not_compared():
    refs = references(1.0, 2.0, digests={"tokenizer": "aaa", "mask": "m"})
    same = {"tokenizer": "aaa", "template": "t", "mask": "m"}
    assert check_provenance(refs, domain_set=DOMAINS, run_digests=same) == []
    with pytest.raises(ValueError, match=r"reference\.json: measured with another tokenizer \(digest aaa, this run b"):
        check_provenance(refs, domain_set=DOMAINS, run_digests=same | {"tokenizer": "bbb"})


def test_training_losses_are_refused_and_memorisation_gives_a_warning():
    with pytest.raises(ValueError, match="measured on 'train' rows; references must be held-out"):
        check_provenance(references(1.0, 2.0, measured_on="train"), domain_set=DOMAINS, run_digests={})
    memorised = references(1.0, 2.0, train_losses={"law": 0.1, "code": 1.9}, measured_on="held-out")
    warnings = check_provenance(memorised, domain_set=DOMAINS, run_digests={})
    assert len(warnings) == 1
    assert "law (training loss 0.1000, held-out loss 1.0000): the reference model memorised its rows" in warnings[0]


def test_a_reference_file_may_have_no_loss_of_a_domain_that_is_never_measured(tmp_path):
    path = tmp_path / "reference.json"
    path.write_text('{"losses": {"law": 1.5, "code": null}}')
    loaded = load(reference=path)
    assert loaded.losses_K == pytest.approx([1.5, np.nan], nan_ok=True)
    assert check_against_start(loaded, start_K=np.array([2.0, np.nan]), domain_set=DOMAINS) == []
    with pytest.raises(ValueError, match=r"no reference loss for code, whose held-out loss is measured; measure them"):
        check_against_start(loaded, start_K=np.array([2.0, 3.0]), domain_set=DOMAINS)


def test_a_reference_file_without_any_loss_is_refused(tmp_path):
    path = tmp_path / "reference.json"
    path.write_text('{"losses": {"law": null, "code": null}}')
    with pytest.raises(ValueError, match=r"law: expected a positive loss in nats per loss token, got nan"):
        load(reference=path)
