"""Every record is counted when data is prepared, and data is prepared once."""

from __future__ import annotations

import json

import numpy as np
import pytest
from chat_data import chat_row, chat_rows, tiny_tokenizer, write_domains, write_jsonl
from prepare_data import prepare_folder, prepare_rows, small_blocks, texts_of

from versatune_ds.config import DataConfig
from versatune_ds.data.prepare import domains
from versatune_ds.data.prepare.domains import prepare_domains
from versatune_ds.data.sources.domain_files import iter_texts


def test_two_domains_become_shards_in_sorted_order(tmp_path):
    prepared = prepare_folder(write_domains(tmp_path / "data", num_rows=7))
    assert tuple(prepared.domain_set) == ("code", "law")
    assert [shards.name for shards in prepared.train] == ["code", "law"]
    assert [shards.num_examples for shards in (*prepared.train, *prepared.valid)] == [7, 7, 5, 5]
    assert texts_of(prepared.train[1])[3] == (
        "<|begin|><|user|>\nlaw: what is 3 plus 3?\n<|assistant|>\nIt is 6.<|end|>\n"
    )


def test_the_table_counts_every_record_by_its_result(tmp_path):
    long_answer, long_question = chat_row("why?", "because " * 40), chat_row("why " * 60, "because")
    rows = [*chat_rows(4), *chat_rows(1), "{broken", {"title": "x"}, long_answer, long_question]
    counts, shards = prepare_rows(tmp_path, rows, max_bad_rows=2, row_tokens=64)

    assert (counts.num_rows, counts.num_bad_rows, counts.num_duplicates) == (9, 2, 1)
    assert (counts.num_without_loss, counts.num_long_rows) == (1, 2)
    assert (counts.num_examples, counts.longest_tokens) == (6, 64)
    assert counts.num_tokens == shards.lengths.sum()
    assert counts.num_loss_tokens == shards.loss_lengths.sum()
    reports = [json.loads(line) for line in (shards.folder.parent / "bad_rows.jsonl").read_text().splitlines()]
    assert [report["line"] for report in reports] == [6, 7]


def test_the_table_has_one_line_per_split(tmp_path):
    lines = prepare_folder(write_domains(tmp_path / "data", num_rows=7)).table.splitlines()
    assert lines[0].split()[:6] == ["domain", "split", "files", "rows", "bad", "rows"]
    assert [line.split()[:4] for line in lines[2:4]] == [["code", "train", "1", "7"], ["code", "valid", "1", "5"]]
    assert len(lines) == 6


def test_the_table_explains_duplicates_if_there_are_any(tmp_path):
    folder = write_domains(tmp_path / "data", num_rows=7)
    write_jsonl(folder / "train" / "law.jsonl", [*chat_rows(3, topic="law"), *chat_rows(1, topic="law")])
    write_jsonl(folder / "valid" / "law.jsonl", chat_rows(1, topic="law"))
    header, *_, duplicates, in_train = prepare_folder(folder).table.splitlines()
    assert header.endswith("duplicates  in train")
    assert duplicates == "duplicates: rows with the content of an earlier row of the same split; they are kept"
    assert in_train.startswith("in train: held-out rows that the domain trains on too")


def test_truncation_drops_tokens_that_splitting_keeps(tmp_path):
    answer = " ".join(str(i) for i in range(100))
    counts, shards = prepare_rows(tmp_path / "cut", [chat_row("count", answer)], row_tokens=32)
    assert (shards.num_examples, counts.longest_tokens) == (1, 32)
    full, _ = prepare_rows(tmp_path / "full", [chat_row("count", answer)], row_tokens=1000)
    assert counts.num_cut_tokens == full.num_tokens - 32

    split_counts, pieces = prepare_rows(
        tmp_path / "split", [chat_row("count", answer)], row_tokens=32, long_examples="split"
    )
    assert (split_counts.num_rows, split_counts.num_long_rows, split_counts.num_cut_tokens) == (1, 1, 0)
    assert split_counts.num_loss_tokens == full.num_loss_tokens
    assert split_counts.num_duplicates == 0
    rejoined = [pieces.read(0)[0], *(pieces.read(i)[0][1:] for i in range(1, len(pieces)))]
    assert tiny_tokenizer().decode(np.concatenate(rejoined)).endswith(f"{answer}<|end|>\n")


def test_a_second_call_builds_nothing(tmp_path, monkeypatch):
    folder = write_domains(tmp_path / "data", num_rows=5)
    first = prepare_folder(folder)
    monkeypatch.setattr(domains, "build_domain", lambda *args, **kwargs: pytest.fail("built again"))
    second = prepare_folder(folder)
    assert (second.digest, second.counts) == (first.digest, first.counts)


@pytest.mark.parametrize("settings", [{"row_tokens": 100}, {"loss_on": "all"}, {"long_examples": "split"}])
def test_other_settings_give_other_shards(tmp_path, settings):
    folder = write_domains(tmp_path / "data", num_rows=5)
    before = {shards.folder for shards in prepare_folder(folder).train}
    assert before.isdisjoint({shards.folder for shards in prepare_folder(folder, **settings).train})


def test_after_a_change_of_a_file_only_its_domain_is_prepared_again(tmp_path):
    folder = write_domains(tmp_path / "data", num_rows=5)
    before = prepare_folder(folder)
    write_jsonl(folder / "train" / "law.jsonl", chat_rows(5, topic="LAW"))
    after = prepare_folder(folder)
    assert [a.folder == b.folder for a, b in zip(before.train, after.train, strict=True)] == [True, False]
    assert after.digest != before.digest


def test_a_file_changed_without_a_change_of_size_is_noticed(tmp_path):
    folder = write_domains(tmp_path / "data", num_rows=5)
    path = folder / "train" / "law.jsonl"
    before = prepare_folder(folder).digest
    path.write_text(path.read_text().replace("law", "tax"))
    assert prepare_folder(folder).digest != before


def test_a_moved_folder_gives_the_same_digest(tmp_path):
    first = prepare_folder(write_domains(tmp_path / "a" / "data", num_rows=5))
    second = prepare_folder(write_domains(tmp_path / "b" / "elsewhere", num_rows=5))
    assert first.digest == second.digest


def test_many_processes_give_the_same_bytes_as_one(tmp_path, monkeypatch):
    small_blocks(monkeypatch, num_records=100)
    one = prepare_folder(write_domains(tmp_path / "a" / "data", num_rows=600, domains=["law"]))
    three = prepare_folder(write_domains(tmp_path / "b" / "data", num_rows=600, domains=["law"]), num_processes=3)
    assert three.digest == one.digest


def test_a_domain_may_have_many_files_and_formats(tmp_path):
    folder = write_domains(tmp_path / "data", num_rows=5, domains=["law"])
    write_jsonl(folder / "train" / "code" / "b.jsonl", chat_rows(2, topic="b"))
    (folder / "train" / "code" / "a.csv").write_text("question,answer\nwhy,because\n")
    write_jsonl(folder / "valid" / "code.jsonl", chat_rows(1))
    prepared = prepare_folder(folder)
    assert (prepared.counts[0].num_files, prepared.counts[0].num_rows) == (2, 3)
    assert "because" in texts_of(prepared.train[0])[0]


def test_a_column_with_text_that_is_not_read_is_listed_once_and_at_every_start(tmp_path, caplog):
    rows = [{"question": f"why {i}?", "answer": "so", "hint": "think of it", "id": f"r{i}"} for i in range(3)]
    path = write_jsonl(tmp_path / "data" / "train" / "law.jsonl", [*rows, {"question": "and?", "answer": "so"}])
    write_jsonl(tmp_path / "data" / "valid" / "law.jsonl", rows[:2])
    with caplog.at_level("INFO"):
        prepare_folder(tmp_path / "data")
    listed = f"law: columns with text that is not trained on: hint (5 rows, first {path}:1); "
    assert [message for message in caplog.messages if message.startswith(listed)] != []
    assert caplog.text.count("not trained on: hint") == 1
    assert "law: columns not trained on: id" in caplog.messages
    caplog.clear()
    prepare_folder(tmp_path / "data")
    assert caplog.text.count("not trained on: hint") == 1


def test_an_ordinary_data_set_does_not_warn(tmp_path, caplog):
    row = {"id": "a", "source": "https://x.org", "category": "open qa", "instruction": "why?", "output": "so"}
    with caplog.at_level("WARNING", logger="versatune_ds"):
        prepare_rows(tmp_path, [{**row, "id": str(i)} for i in range(3)])
    assert caplog.text == ""


def test_columns_that_a_recipe_omits_cause_no_warning(tmp_path, caplog):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"Q": "why?", "A": "because", "hint": "think of it"}])
    files = {"train": str(path), "valid": [], "columns": {"prompt": "Q", "answer": "A"}}
    with caplog.at_level("INFO"):
        prepare_domains(DataConfig(domains={"law": files}), tokenizer=tiny_tokenizer(), cache_dir=tmp_path / "cache")
    assert [record.levelname for record in caplog.records if "hint" in record.message] == ["INFO"]


def test_a_file_without_records_is_logged(tmp_path, caplog):
    folder = write_domains(tmp_path / "data", num_rows=5, domains=["law"])
    for name, rows in (("a", []), ("b", chat_rows(2))):
        write_jsonl(folder / "train" / "code" / f"{name}.jsonl", rows)
        write_jsonl(folder / "valid" / "code" / f"{name}.jsonl", rows)
    prepare_folder(folder)
    assert f"code: {folder}/train/code/a.jsonl has no rows" in caplog.messages
    assert f"code: {folder}/valid/code/a.jsonl has no rows" in caplog.messages


def test_a_mapping_keeps_its_order_and_maps_columns(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"Q": f"why {i}", "A": f"because {i}"} for i in range(3)])
    files = {"train": str(path), "valid": str(path), "columns": {"prompt": "Q", "answer": "A"}}
    data = DataConfig(domains={"zoology": files, "art": files})
    prepared = prepare_domains(data, tokenizer=tiny_tokenizer(), cache_dir=tmp_path / "cache")
    assert tuple(prepared.domain_set) == ("zoology", "art")
    assert "because 2" in texts_of(prepared.train[1])[2]


def test_the_built_in_corpus_is_written_and_prepared(tmp_path):
    data = DataConfig(synthetic={"num_rows": 20, "num_valid_rows": 5, "num_test_rows": 5})
    prepared = prepare_domains(data, tokenizer=tiny_tokenizer(), cache_dir=tmp_path / "cache")
    assert len(prepared.domain_set) == 6
    assert [counts.num_rows for counts in prepared.counts] == [20, 5] * 6
    assert [counts.num_in_train for counts in prepared.counts] == [0] * 12


def test_texts_for_a_tokenizer_are_those_of_the_good_training_records(tmp_path):
    write_jsonl(tmp_path / "train" / "law.jsonl", [chat_row("a", "b"), "{broken", {"text": "c"}])
    assert list(iter_texts(DataConfig(folder=tmp_path), cache_dir=tmp_path / "cache")) == ["a", "b", "c"]


def test_bad_records_are_logged_at_every_start(tmp_path, caplog):
    prepare_rows(tmp_path, [*chat_rows(3), "{broken"], max_bad_rows=1)
    caplog.clear()
    prepare_folder(tmp_path / "data", max_bad_rows=1)
    assert "law: 1 bad rows skipped" in caplog.text
