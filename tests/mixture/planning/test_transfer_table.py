"""transfer.json: what is written is read back, and every wrong entry is one line with file, key and what to do."""

import copy
import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transfer_tables import two_domain_table

from versatune_ds.domains import DomainSet
from versatune_ds.mixture.planning.transfer_reader import read_transfer, table_of
from versatune_ds.mixture.planning.transfer_table import Source, TransferTable


def written(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_written_table_is_read_back_with_every_number(tmp_path):
    table = two_domain_table()
    read = read_transfer(written(tmp_path / "transfer.json", table.to_dict()))
    assert read.to_dict() == table.to_dict()
    law = read.sources["law"]
    assert law.steps_S.tolist() == [0, 2, 4]
    assert law.tokens_S.tolist() == [0, 200, 400]
    assert law.changes_SK[:, 1].tolist() == [0.0, 0.25, 0.5]  # training on law made code worse
    assert (law.num_examples, law.tokens_per_epoch, law.model) == (10, 1000, "reference/tiny/law/model")
    assert read.sources["code"].model is None
    assert read.base_losses_K.tolist() == [2.0, 3.0]
    assert read.provenance == {"seed": 3, "digests": {"mask": "d"}}


def test_the_changes_have_a_row_for_each_domain_trained_on():
    table = two_domain_table()
    step, changes_KK, stderrs_KK = table.common_changes()
    assert step == 4
    assert (changes_KK * table.base_losses_K).tolist() == [[-1.0, 0.5], [0.125, -2.0]]
    assert stderrs_KK * table.base_losses_K == pytest.approx(0.1)
    only_law = table_of({**table.to_dict(), "sources": {"law": table.to_dict()["sources"]["law"]}}, place="t.json")
    _, changes_KK, _ = only_law.common_changes()
    assert np.isnan(changes_KK[1]).all()
    assert (changes_KK[0] * table.base_losses_K).tolist() == [-1.0, 0.5]


def test_changes_are_compared_at_the_last_step_that_every_source_reached():
    table = two_domain_table()
    law = table.sources["law"]
    longer = dataclasses.replace(
        law,
        steps_S=np.append(law.steps_S, 6),
        tokens_S=np.append(law.tokens_S, 600),
        **{name: np.append(getattr(law, name), [[9.0, 9.0]], axis=0)
           for name in ("losses_SK", "changes_SK", "change_stderrs_SK")},
    )  # fmt: skip
    table = dataclasses.replace(table, sources={**table.sources, "law": longer})
    step, changes_KK, _ = table.common_changes()
    assert step == 4
    assert (changes_KK[0] * table.base_losses_K).tolist() == [-1.0, 0.5]


def test_an_unmeasured_domain_has_no_entries_and_may_be_a_source():
    table = two_domain_table()
    content = table.to_dict()
    content["unmeasured"] = ["code"]
    for column in (*content["base"].values(), *(content["sources"]["code"][k] for k in ("losses", "changes"))):
        del column["code"]
    read = table_of(content, place="t.json")
    assert read.is_measured().tolist() == [True, False]
    assert np.isnan(read.base_losses_K[1])
    assert np.isnan(read.sources["code"].losses_SK[:, 1]).all()
    assert read.sources["code"].changes_SK[-1, 0] == 0.125
    assert "code" not in read.to_dict()["sources"]["law"]["losses"]


def test_a_loss_that_was_not_finite_is_null_in_the_file_and_nan_in_the_table(tmp_path):
    content = two_domain_table().to_dict()
    content["sources"]["law"]["losses"]["code"][2] = None
    read = read_transfer(written(tmp_path / "transfer.json", content))
    assert np.isnan(read.sources["law"].losses_SK[2, 1])
    assert read.to_dict() == content


@given(st.lists(st.floats(allow_nan=True, allow_infinity=False), min_size=2, max_size=5))
def test_any_losses_survive_the_file_exactly(losses):
    S = len(losses)
    column_SK = np.array(losses)[:, None]
    source = Source(
        steps_S=np.arange(S), tokens_S=np.arange(S) * 7, losses_SK=column_SK, changes_SK=column_SK,
        change_stderrs_SK=column_SK, num_examples=1, tokens_per_epoch=1,
    )  # fmt: skip
    table = TransferTable(
        domain_set=DomainSet(("é",)), base_losses_K=np.array([1.0]), base_stderrs_K=np.array([0.1]),
        sources={"é": source},
    )  # fmt: skip
    read = table_of(json.loads(json.dumps(table.to_dict(), allow_nan=False)), place="t.json")
    assert np.array_equal(read.sources["é"].losses_SK, column_SK, equal_nan=True)


def without(key):
    def change(content):
        *parents, last = key.split(".")
        for parent in parents:
            content = content[parent]
        del content[last]

    return change


def setting(key, value):
    def change(content):
        *parents, last = key.split(".")
        for parent in parents:
            content = content[parent]
        content[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("domains"), "domains: expected a list of names, got nothing"),
        (setting("domains", ["law", "law"]), "domains: 'law': expected a printable name, given once"),
        (setting("unmeasured", ["medicine"]), "unmeasured: expected domains of law, code, got medicine"),
        (setting("unmeasured", ["law", "code"]), "unmeasured: expected at least one domain with held-out rows"),
        (without("base"), "base: expected {losses, stderrs}, got nothing"),
        (without("base.losses.code"), "base.losses.code: expected a number or null, got nothing"),
        (setting("base.stderrs.law", "0.1"), "base.stderrs.law: expected a number or null, got 0.1"),
        (setting("base.losses.physics", 1.0), "base.losses: expected domains of law, code, got physics"),
        (setting("sources", {}), "sources: expected at least one domain that was trained on, got {}"),
        (setting("sources.law", 3), "sources.law: expected {domain: value}, got 3"),
        (setting("sources.physics", {}), "sources: expected domains of law, code, got physics"),
        (setting("sources.law.steps", [2, 4, 6]), "sources.law.steps: expected whole numbers that rise from 0"),
        (setting("sources.law.steps", [0, 4, 4]), "sources.law.steps: expected whole numbers that rise from 0"),
        (setting("sources.law.steps", [0, 2.5, 4]), "sources.law.steps: expected whole numbers that rise from 0"),
        (setting("sources.law.tokens", [0, 9]), "sources.law.tokens: expected 3 numbers, one a step, got [0, 9]"),
        (setting("sources.law.changes.code", [0, 1]), "sources.law.changes.code: expected 3 numbers or nulls"),
        (setting("sources.law.losses.code", [0, 1, 1e999]), "sources.law.losses.code: expected 3 numbers or nulls"),
        (without("sources.law.change_stderrs"), "sources.law.change_stderrs: expected {domain: value}, got nothing"),
        (setting("sources.law.model", 3), "sources.law.model: expected a folder or null, got 3"),
        (setting("sources.law.rows", 0), "sources.law.rows: expected a positive whole number, got 0"),
        (without("sources.law.tokens_per_epoch"), "sources.law.tokens_per_epoch: expected a positive whole number"),
    ],
)  # fmt: skip
def test_a_wrong_entry_is_refused_in_one_line_with_file_and_key(change, words, tmp_path):
    content = copy.deepcopy(two_domain_table().to_dict())
    change(content)
    path = written(tmp_path / "transfer.json", content)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read_transfer(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: {words}"), message
    assert message.endswith("; write it again with versatune reference")
    assert "\n" not in message


def test_a_missing_or_corrupt_file_is_refused_in_one_line(tmp_path):
    path = tmp_path / "transfer.json"
    with pytest.raises(ValueError, match=r"transfer\.json: no such file; run versatune reference"):
        read_transfer(path)
    with pytest.raises(ValueError, match=r"a folder; expected the transfer\.json"):
        read_transfer(tmp_path)
    for text, words in (
        ("", "transfer.json: empty; write it again with versatune reference"),
        ('{"domains": ["law"],\n "base": oops}', r"transfer.json:2: not valid JSON"),
        ('{"base": 1, "base": 2}', "key 'base' is given twice"),
        ("[1]", r"expected \{key: value\}, got \[1\]"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=words):
            read_transfer(path)


def test_mixed_runs_are_read_back_and_a_file_without_any_is_still_read(tmp_path):
    content = two_domain_table().to_dict()
    assert content.pop("mixed") == []
    assert table_of(content, place="t.json").mixed == ()
    run = {key: content["sources"]["law"][key] for key in ("steps", "tokens", "losses", "changes", "change_stderrs")}
    content["mixed"] = [{"weights": {"code": 0.75, "law": 0.25}, **run}]
    read = read_transfer(written(tmp_path / "transfer.json", content))
    assert read.mixed[0].weights_K.tolist() == [0.25, 0.75]  # in the order of the domains
    assert read.mixed[0].changes_SK[:, 1].tolist() == [0.0, 0.25, 0.5]
    assert table_of(read.to_dict(), place="t.json").to_dict() == read.to_dict()


@pytest.mark.parametrize(
    "weights", [{"law": 0.5}, {"law": 0.5, "code": 0.6}, {"law": -0.5, "code": 1.5}, [0.5, 0.5], None]
)
def test_a_mixed_run_needs_a_share_of_every_domain(weights):
    content = two_domain_table().to_dict()
    run = {key: content["sources"]["law"][key] for key in ("steps", "tokens", "losses", "changes", "change_stderrs")}
    content["mixed"] = [{"weights": weights, **run}]
    with pytest.raises(ValueError, match=r"^t\.json: mixed\.0\.weights: expected .*versatune reference$"):
        table_of(content, place="t.json")
