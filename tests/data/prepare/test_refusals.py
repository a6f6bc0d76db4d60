"""Data that cannot be prepared is refused with one sentence: what is wrong, where, how often, what to do."""

from __future__ import annotations

import json

import pytest
from chat_data import chat_row, chat_rows, tiny_tokenizer, write_jsonl
from prepare_data import prepare_folder, prepare_rows, prepare_without_valid

from versatune_ds.config import DataConfig
from versatune_ds.data.prepare.domains import prepare_domains
from versatune_ds.data.sources.domain_files import domain_files


def test_the_error_for_too_many_bad_records_gives_domain_count_places_and_reasons(tmp_path):
    with pytest.raises(ValueError, match="bad rows") as caught:
        prepare_rows(tmp_path, [*chat_rows(3), "{broken", {"chosen": "a", "rejected": "b"}], max_bad_rows=1)
    path = tmp_path / "data" / "train" / "law.jsonl"
    message = str(caught.value)
    assert message.startswith(
        f"data.folder: domain 'law' has 2 bad rows of 6, and data.max_bad_rows allows 1: {path}:4: not valid JSON: "
    )
    assert f"{path}:5: preference pair" in message
    assert not list((tmp_path / "cache").glob("law-*"))


def test_the_error_for_a_domain_without_valid_examples_gives_the_key_and_what_to_do(tmp_path):
    train = write_jsonl(tmp_path / "law.jsonl", chat_rows(5))
    valid = write_jsonl(tmp_path / "held_out.jsonl", ["{broken"])
    domains = {"law": {"train": [str(train)], "valid": [str(valid)]}}
    with pytest.raises(ValueError, match="has no valid example") as caught:
        prepare_domains(
            DataConfig(domains=domains, max_bad_rows=1), tokenizer=tiny_tokenizer(), cache_dir=tmp_path / "cache"
        )
    assert str(caught.value) == (
        f"data.domains.law.valid: domain 'law' has no valid example: of 1 rows in {valid}, 1 are bad and 0 have no "
        "token that bears loss within data.row_tokens; give it held-out rows, or data.domains.law.valid=[] to train "
        "on the domain without measuring its loss"
    )


def test_the_list_of_bad_records_of_a_refused_domain_is_kept(tmp_path):
    kept = tmp_path / "cache" / "refused" / "law-bad_rows.jsonl"
    with pytest.raises(ValueError, match=f"; all in {kept}$"):
        prepare_rows(tmp_path, [*chat_rows(3), *["{broken"] * 5], max_bad_rows=1)
    assert [json.loads(line)["line"] for line in kept.read_text().splitlines()] == [4, 5, 6, 7, 8]


def test_a_lower_limit_refuses_what_was_prepared_under_a_higher_one(tmp_path):
    prepare_rows(tmp_path, [*chat_rows(3), "{broken"], max_bad_rows=1)
    with pytest.raises(ValueError, match=r"has 1 bad rows of 5, and data.max_bad_rows allows 0"):
        prepare_folder(tmp_path / "data", max_bad_rows=0)


def test_control_characters_of_a_data_file_do_not_reach_the_message(tmp_path):
    with pytest.raises(ValueError, match=r"\\x1b\[31m") as caught:
        prepare_rows(tmp_path, [{"\x1b[31mred": 1}], max_bad_rows=0)
    assert "\x1b" not in str(caught.value)


def test_half_a_surrogate_pair_makes_one_bad_record(tmp_path):
    half = '{"question": "\\ud83d", "answer": "a"}'
    with pytest.raises(ValueError, match=r"law.jsonl:2: contains half of a surrogate pair, which is not valid text"):
        prepare_rows(tmp_path, [*chat_rows(1), half, '{"\\ud83d": 1}'], max_bad_rows=0)


def test_the_error_for_a_domain_without_records_gives_its_file(tmp_path):
    with pytest.raises(ValueError, match=r"data.folder: domain 'law' has no rows in .*law.jsonl"):
        prepare_without_valid(tmp_path, [])


def test_the_error_for_a_fraction_that_holds_out_nothing_gives_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"data.valid_fraction=0.2 holds out no row of domain 'law'; give it files"):
        prepare_without_valid(tmp_path, chat_rows(1))


def test_a_domain_whose_answers_all_lie_beyond_the_row_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"of 1 rows in .* 0 are bad and 1 have no token that bears loss"):
        prepare_rows(tmp_path, [chat_row("why " * 100, "because")], row_tokens=32)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([], "train is not a folder; expected .*train/DOMAIN.jsonl"),
        (["trian/law.jsonl"], "train is not a folder; did you mean '.*/trian'\\?"),
        (["train/README.md"], "train has no data file"),
        (["train/law.jsonl", "train/law.csv"], "law.csv and law.jsonl in .* are the same domain 'law'"),
        (
            ["train/law.jsonl", "valid/law.jsonl", "valid/tax.jsonl"],
            r"tax.jsonl belongs to no domain of .*train \(law\)",
        ),
    ],
)
def test_a_folder_that_is_not_a_set_of_domains_is_refused(tmp_path, files, reason):
    for name in files:
        write_jsonl(tmp_path / name, [])
    with pytest.raises(ValueError, match=reason):
        domain_files(DataConfig(folder=tmp_path), cache_dir=tmp_path / "cache")
