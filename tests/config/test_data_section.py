"""The data section: one source or a list, a Hub data set as a mapping, columns by part."""

from __future__ import annotations

import pytest

from versatune_ds.config.load import parse_config


def domains_of(**domains):
    """Return the typed domains of a recipe."""
    values = {
        "run": {"name": "mine"},
        "model": {"name_or_path": "some/model"},
        "data": {"domains": domains},
        "train": {"steps": 1},
        "mixture": {"reference": {"start_fraction": 0.85}},
    }
    return parse_config(values).data.domains


def test_one_source_needs_no_list():
    law = domains_of(law={"train": "law.jsonl", "valid": {"hub": "owner/law", "split": "test"}})["law"]
    assert law.train == ("law.jsonl",)
    assert (law.valid[0].hub, law.valid[0].config, law.valid[0].split) == ("owner/law", None, "test")


def test_paths_and_hub_data_sets_may_be_mixed_in_a_list():
    law = domains_of(law={"train": ["a/*.jsonl", {"hub": "owner/law", "config": "eu"}]})["law"]
    assert law.train[0] == "a/*.jsonl"
    assert (law.train[1].config, law.train[1].split) == ("eu", "train")


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("law.jsonl", {"train": "law.jsonl"}),
        (["a.jsonl", {"hub": "owner/law"}], {"train": ["a.jsonl", {"hub": "owner/law"}]}),
        ({"hub": "owner/law", "split": "dev"}, {"train": {"hub": "owner/law", "split": "dev"}}),
        ({"hub": "owner/law", "valid": "v.jsonl"}, {"train": {"hub": "owner/law"}, "valid": "v.jsonl"}),
    ],
)
def test_a_domain_may_be_written_as_its_training_files_alone(short, full):
    assert domains_of(law=short) == domains_of(law=full)


def test_a_domain_written_as_a_path_is_expanded_and_takes_other_domains_beside_it(monkeypatch):
    monkeypatch.setenv("DATA", "/data")
    domains = domains_of(law="$DATA/law.jsonl", tax={"train": "t", "valid": []})
    assert (domains["law"].train, domains["law"].valid, domains["tax"].valid) == (("/data/law.jsonl",), None, ())


def test_domains_keep_the_order_of_the_recipe():
    assert list(domains_of(tax={"train": "t"}, art={"train": "a"}, law={"train": "l"})) == ["tax", "art", "law"]


@pytest.mark.parametrize(
    ("law", "message"),
    [
        ({}, "data.domains.law.train: missing; this key is required"),
        ({"train": "a", "vaild": "b"}, "data.domains.law.vaild: unknown key; did you mean 'valid'?"),
        ({"train": {"hub": "a/b", "splitt": "c"}}, "data.domains.law.train.0.hub.splitt: unknown key"),
        (
            {"train": {"hub": "a/b", "split": "train[:5]"}},
            "data.domains.law.train.0.hub.split: expected the name of a split such as train, without a slice",
        ),
        ([3], "data.domains.law.train.0: expected text (got 3)"),
        (3, "data.domains.law: expected key: value pairs, with the keys train, valid, columns, description (got 3)"),
        ({"train": [3]}, "data.domains.law.train.0: expected text (got 3)"),
        (
            {"train": "a", "columns": {"promt": "Q", "answer": "A"}},
            "data.domains.law.columns: unknown part 'promt'; did you mean 'prompt'?",
        ),
        (
            {"train": "a", "columns": {"prompt": "Q"}},
            "data.domains.law.columns: an example needs prompt and answer, or messages, or text",
        ),
    ],
)
def test_a_mistake_is_reported_in_one_line_with_its_key(law, message):
    with pytest.raises(ValueError, match=r"^data.domains.law") as caught:
        domains_of(law=law)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
