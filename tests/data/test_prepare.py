"""Preparing data accounts for every row, happens once, and survives kills, twins and bad files."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal

import numpy as np
import pytest
from chat_data import chat_row, chat_rows, tiny_tokenizer, write_domains, write_jsonl
from hypothesis import given
from hypothesis import strategies as st

from versatune_ds.config.sections import DataConfig
from versatune_ds.data import cache, encode_files, prepare, prepare_domain, shard_writer
from versatune_ds.data.domain_files import domain_files, iter_texts
from versatune_ds.data.prepare import prepare_domains
from versatune_ds.data.prepare_domain import is_held_out_by_hash
from versatune_ds.data.shards import DomainShards


def prepare_folder(folder, **settings):
    """Prepare a folder of domains with its cache beside it."""
    data = DataConfig(folder=folder, **settings)
    return prepare_domains(data, tokenizer=tiny_tokenizer(), cache_dir=folder.parent / "cache")


def prepare_rows(tmp_path, rows, **settings):
    """Prepare one domain `law` of given training rows and one held-out row; return its counts and its shards."""
    write_jsonl(tmp_path / "data" / "train" / "law.jsonl", rows)
    write_jsonl(tmp_path / "data" / "valid" / "law.jsonl", chat_rows(1, topic="held out"))
    prepared = prepare_folder(tmp_path / "data", **settings)
    return prepared.counts[0], prepared.train[0]


def texts_of(shards):
    """Return the questions and answers of a split as texts."""
    return [tiny_tokenizer().decode(shards.read(i)[0]) for i in range(len(shards))]


def test_two_domains_become_shards_in_sorted_order(tmp_path):
    prepared = prepare_folder(write_domains(tmp_path / "data", num_rows=7))
    assert tuple(prepared.domain_set) == ("code", "law")
    assert [shards.name for shards in prepared.train] == ["code", "law"]
    assert [shards.num_examples for shards in (*prepared.train, *prepared.valid)] == [7, 7, 5, 5]
    assert texts_of(prepared.train[1])[3] == (
        "<|begin|><|user|>\nlaw: what is 3 plus 3?\n<|assistant|>\nIt is 6.<|end|>\n"
    )


def test_the_table_counts_what_became_of_every_row(tmp_path):
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


def test_the_table_is_printed_one_line_a_split(tmp_path):
    lines = prepare_folder(write_domains(tmp_path / "data", num_rows=7)).table.splitlines()
    assert lines[0].split()[:6] == ["domain", "split", "files", "rows", "bad", "rows"]
    assert [line.split()[:4] for line in lines[1:3]] == [["code", "train", "1", "7"], ["code", "valid", "1", "5"]]


def test_truncated_and_split_examples_differ_in_what_they_keep(tmp_path):
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
    rejoined = [pieces.read(0)[0], *(pieces.read(i)[0][1:] for i in range(1, len(pieces)))]
    assert tiny_tokenizer().decode(np.concatenate(rejoined)).endswith(f"{answer}<|end|>\n")


def test_a_second_call_builds_nothing(tmp_path, monkeypatch):
    folder = write_domains(tmp_path / "data", num_rows=5)
    first = prepare_folder(folder)
    monkeypatch.setattr(prepare, "build_domain", lambda *args, **kwargs: pytest.fail("built again"))
    second = prepare_folder(folder)
    assert (second.digest, second.counts) == (first.digest, first.counts)


@pytest.mark.parametrize("settings", [{"row_tokens": 100}, {"loss_on": "all"}, {"long_examples": "split"}])
def test_other_settings_make_other_shards(tmp_path, settings):
    folder = write_domains(tmp_path / "data", num_rows=5)
    before = {shards.folder for shards in prepare_folder(folder).train}
    assert before.isdisjoint({shards.folder for shards in prepare_folder(folder, **settings).train})


def test_a_changed_file_costs_its_own_domain_only(tmp_path):
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
    monkeypatch.setattr(encode_files, "_MIN_RECORDS_PER_PROCESS", 100)
    one = prepare_folder(write_domains(tmp_path / "a" / "data", num_rows=600, domains=["law"]))
    three = prepare_folder(write_domains(tmp_path / "b" / "data", num_rows=600, domains=["law"]), num_processes=3)
    assert three.digest == one.digest


def test_a_domain_may_be_of_many_files_and_formats(tmp_path):
    folder = write_domains(tmp_path / "data", num_rows=5, domains=["law"])
    write_jsonl(folder / "train" / "code" / "b.jsonl", chat_rows(2, topic="b"))
    (folder / "train" / "code" / "a.csv").write_text("question,answer\nwhy,because\n")
    write_jsonl(folder / "valid" / "code.jsonl", chat_rows(1))
    prepared = prepare_folder(folder)
    assert (prepared.counts[0].num_files, prepared.counts[0].num_rows) == (2, 3)
    assert "because" in texts_of(prepared.train[0])[0]


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


def test_texts_for_a_tokenizer_are_those_of_the_good_training_rows(tmp_path):
    write_jsonl(tmp_path / "train" / "law.jsonl", [chat_row("a", "b"), "{broken", {"text": "c"}])
    assert list(iter_texts(DataConfig(folder=tmp_path), cache_dir=tmp_path / "cache")) == ["a", "b", "c"]


# --- what is held out ---


def test_held_out_rows_do_not_change_with_order_or_with_more_rows(tmp_path):
    rows = chat_rows(300)
    few = prepare_without_valid(tmp_path / "few", rows[:150])
    many = prepare_without_valid(tmp_path / "many", rows[::-1])
    assert set(texts_of(few.valid[0])) <= set(texts_of(many.valid[0]))
    assert not set(texts_of(many.valid[0])) & set(texts_of(many.train[0]))
    assert 300 * 0.1 < len(many.valid[0]) < 300 * 0.3


def test_rows_that_differ_in_spaces_and_case_never_straddle(tmp_path):
    rows = chat_rows(100) + [chat_row(f" SUM: what is  {i} plus {i}?", f"it IS {2 * i}. ") for i in range(100)]
    prepared = prepare_without_valid(tmp_path, rows)
    hashes = [set(shards.content_hashes.tolist()) for shards in (prepared.train[0], prepared.valid[0])]
    assert not hashes[0] & hashes[1]
    assert [counts.num_duplicates * 2 for counts in prepared.counts] == [counts.num_rows for counts in prepared.counts]


def prepare_without_valid(tmp_path, rows):
    write_jsonl(tmp_path / "data" / "train" / "law.jsonl", rows)
    return prepare_folder(tmp_path / "data", valid_fraction=0.2)


@given(st.integers(0, 2**64 - 1), st.floats(0.001, 0.499), st.floats(0.001, 0.499))
def test_a_larger_fraction_holds_out_the_same_rows_and_more(content_hash, one, other):
    hashes = np.array([content_hash], dtype=np.uint64)
    small, large = (is_held_out_by_hash(hashes, fraction=fraction)[0] for fraction in sorted((one, other)))
    assert large or not small


def test_held_out_rows_that_are_trained_on_are_counted_and_said(tmp_path, caplog):
    folder = write_domains(tmp_path / "data", num_rows=5, domains=["law"])
    write_jsonl(folder / "valid" / "law.jsonl", chat_rows(8, topic="LAW"))
    assert prepare_folder(folder).counts[1].num_in_train == 5
    assert "law: 5 of 8 held-out rows are also trained on" in caplog.text


# --- what is refused ---


def test_too_many_bad_rows_name_domain_count_places_and_reasons(tmp_path):
    with pytest.raises(ValueError, match="bad rows") as caught:
        prepare_rows(tmp_path, [*chat_rows(3), "{broken", {"chosen": "a", "rejected": "b"}], max_bad_rows=1)
    path = tmp_path / "data" / "train" / "law.jsonl"
    message = str(caught.value)
    assert message.startswith(
        f"data.folder: domain 'law' has 2 bad rows of 6, and data.max_bad_rows allows 1: {path}:4: not valid JSON: "
    )
    assert f"{path}:5: preference pair" in message
    assert not list((tmp_path / "cache").glob("law-*"))


def test_a_lower_limit_refuses_what_was_prepared_under_a_higher_one(tmp_path):
    prepare_rows(tmp_path, [*chat_rows(3), "{broken"], max_bad_rows=1)
    with pytest.raises(ValueError, match=r"has 1 bad rows of 5, and data.max_bad_rows allows 0"):
        prepare_folder(tmp_path / "data", max_bad_rows=0)


def test_control_characters_of_a_data_file_do_not_reach_the_message(tmp_path):
    with pytest.raises(ValueError, match=r"\\x1b\[31m") as caught:
        prepare_rows(tmp_path, [{"\x1b[31mred": 1}], max_bad_rows=0)
    assert "\x1b" not in str(caught.value)


def test_a_domain_without_rows_names_its_file(tmp_path):
    with pytest.raises(ValueError, match=r"data.folder: domain 'law' has no rows: .*law.jsonl holds none"):
        prepare_without_valid(tmp_path, [])


def test_a_fraction_that_holds_out_nothing_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"data.valid_fraction=0.2 holds out no row of domain 'law'; give it files"):
        prepare_without_valid(tmp_path, chat_rows(1))


def test_answers_beyond_the_row_are_named_when_nothing_is_left(tmp_path):
    with pytest.raises(ValueError, match=r"of 1 rows in .* 0 are bad and 1 have no token that bears loss"):
        prepare_rows(tmp_path, [chat_row("why " * 100, "because")], row_tokens=32)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ([], "train is no folder; expected .*train/DOMAIN.jsonl"),
        (["train/README.md"], "train holds no data file"),
        (["train/law.jsonl", "train/law.csv"], "law.csv and law.jsonl in .* are both domain 'law'"),
        (["train/law.jsonl", "valid/tax.jsonl"], r"tax.jsonl belongs to no domain of .*train \(law\)"),
    ],
)
def test_a_folder_that_is_no_set_of_domains_is_refused(tmp_path, files, reason):
    for name in files:
        write_jsonl(tmp_path / name, [])
    with pytest.raises(ValueError, match=reason):
        domain_files(DataConfig(folder=tmp_path), cache_dir=tmp_path / "cache")


# --- kills, twins, damage ---

_STAGES = {
    "while reading": (encode_files, "_rows"),
    "while writing shards": (shard_writer.ShardWriter, "close"),
    "before the summary": (prepare_domain, "_first_problems"),
    "before the rename": (cache, "_force_to_disk"),
}


@pytest.mark.parametrize("stage", _STAGES)
def test_a_killed_preparation_leaves_nothing_half_valid(tmp_path, monkeypatch, stage):
    folder = write_domains(tmp_path / "data", num_rows=30, domains=["law"])
    expected = prepare_folder(write_domains(tmp_path / "undisturbed" / "data", num_rows=30, domains=["law"])).digest
    with monkeypatch.context() as patch:
        patch.setattr(*_STAGES[stage], lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL))
        assert exit_codes_of(prepare_folder, folder) == [-signal.SIGKILL]
    assert not list((tmp_path / "cache").glob("law-*"))
    assert list((tmp_path / "cache").glob(".building-law-*"))

    assert prepare_folder(folder).digest == expected
    assert not list((tmp_path / "cache").glob(".building-*"))


def test_two_preparations_at_once_build_every_domain_once(tmp_path, monkeypatch):
    folder = write_domains(tmp_path / "data", num_rows=400)
    log = tmp_path / "builds"
    build_domain = prepare.build_domain

    def logged_build(place, **options):
        with log.open("a") as stream:
            stream.write(options["task"].name + "\n")
        return build_domain(place, **options)

    monkeypatch.setattr(prepare, "build_domain", logged_build)
    assert exit_codes_of(prepare_folder, folder, num_processes=4) == [0] * 4
    assert sorted(log.read_text().split()) == ["code", "law"]
    for shards in prepare_folder(folder).train:
        DomainShards(shards.folder, verify=True)


def test_a_failed_preparation_leaves_no_folder_behind(tmp_path):
    with pytest.raises(ValueError, match="bad rows"):
        prepare_rows(tmp_path, ["{broken"])
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == ["locks"]


def test_a_damaged_shard_is_named_with_the_way_out(tmp_path):
    folder = write_domains(tmp_path / "data", num_rows=5)
    path = prepare_folder(folder).train[1].folder / "tokens-00000.arrow"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RuntimeError, match=r"tokens-00000.arrow: corrupt shard: .* delete .* and prepare again"):
        prepare_folder(folder)


def exit_codes_of(function, *args, num_processes=1):
    """Run a function in forked processes at once and return their exit codes."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=function, args=args) for _ in range(num_processes)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    return [process.exitcode for process in processes]
