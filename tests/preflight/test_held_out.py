"""`versatune check` counts held-out rows by domain, and says what another data.valid_fraction would hold out."""

from __future__ import annotations

import re

import pytest
import yaml
from chat_data import chat_rows, tiny_tokenizer, write_jsonl

from versatune_ds.config import load_config
from versatune_ds.preflight.held_out import check_held_out
from versatune_ds.preflight.subject import CheckRequest, Subject


@pytest.fixture
def recipe(tmp_path):
    """Return a recipe with a domain of ten rows and one of a thousand."""
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    for domain, num_rows in (("law", 10), ("code", 1000)):
        write_jsonl(tmp_path / "data" / "train" / f"{domain}.jsonl", chat_rows(num_rows, topic=domain))
    values = {
        "run": {"name": "mine", "output_dir": str(tmp_path / "runs")},
        "model": {"from_config": {"model_type": "llama"}, "tokenizer": f"{tmp_path}/tokenizer"},
        "data": {"folder": str(tmp_path / "data"), "row_tokens": 128},
        "train": {"steps": 10, "rows_per_batch": 8},
        "mixture": {"policy": "constant"},
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def found_in(recipe, *overrides):
    findings = check_held_out(Subject(load_config(recipe, overrides), CheckRequest(), num_gpus_here=0))
    return [(finding.level, finding.key, finding.text) for finding in findings]


def test_a_domain_without_a_held_out_row_fails_with_a_fraction_that_holds_out_two_and_what_it_costs_the_others(recipe):
    ok, failure = found_in(recipe)
    assert ok == ("ok", "held-out rows", "code about 20, law 0; 0.02 of the rows of code, law (data.valid_fraction)")
    assert failure[:2] == ("FAIL", "data.valid_fraction")
    assert failure[2] == (
        "0.02 holds out no row of domain 'law' (10 rows); give it files of held-out rows, or set "
        "data.valid_fraction=0.2, one fraction for all domains, which holds out about 200 of code, 2 of law"
    )


def test_one_fraction_is_advised_for_all_small_domains_with_true_counts(recipe):
    write_jsonl(recipe.parent / "data" / "train" / "art.jsonl", chat_rows(8, topic="art"))
    (_, _, text) = found_in(recipe)[-1]
    assert text.startswith(
        "0.02 holds out no row of domain 'art' (8 rows), no row of domain 'law' (10 rows); give them"
    )
    fraction = re.search(r"data\.valid_fraction=(0\.\d+), one fraction for all domains", text)[1]
    (_, _, counts) = found_in(recipe, f"data.valid_fraction={fraction}")[0]
    for name in ("art", "law"):
        told = re.search(rf"(\d+) of {name}", text)[1]
        assert int(told) >= 2
        assert f"{name} {told}" in counts


def test_a_single_held_out_row_is_a_warning_whether_split_off_or_in_a_file(recipe):
    *_, (level, _, text) = found_in(recipe, "data.valid_fraction=0.15")
    assert level == "warn"
    assert text.startswith("0.15 holds out 1 row of domain 'law' (10 rows), so its loss has no standard error; give it")
    valid = recipe.parent / "data" / "valid"
    write_jsonl(valid / "law.jsonl", chat_rows(1, topic="held-out law"))
    write_jsonl(valid / "code.jsonl", chat_rows(3, topic="held-out code"))
    assert found_in(recipe) == [
        ("ok", "held-out rows", "code 3, law 1"),
        ("warn", "law valid", "law: 1 held-out row, so its loss has no standard error; give it more of them"),
    ]


def test_enough_held_out_rows_are_one_line(recipe):
    assert found_in(recipe, "data.valid_fraction=0.2") == [
        ("ok", "held-out rows", "code about 200, law 2; 0.2 of the rows of code, law (data.valid_fraction)")
    ]
