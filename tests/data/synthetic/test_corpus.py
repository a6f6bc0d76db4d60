"""The built-in corpus on disk: complete files, written once, never over other files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from versatune_ds.data.synthetic import DEFAULT_NUM_ROWS, DOMAIN_NAMES, generate_records, write_corpus

SMALL = {"num_rows": 12, "num_valid_rows": 5, "num_test_rows": 3, "seed": 7}


def bytes_of_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_corpus_has_one_file_for_every_split_and_domain_and_no_other(tmp_path: Path) -> None:
    write_corpus(tmp_path, **SMALL)
    files = bytes_of_files(tmp_path)
    expected = {f"{split}/{name}.jsonl" for split in ("train", "valid", "test") for name in DOMAIN_NAMES}
    assert files.keys() == expected | {"corpus.json"}
    assert [files[f"{split}/law.jsonl"].count(b"\n") for split in ("train", "valid", "test")] == [12, 5, 3]


def test_lines_of_a_file_are_the_generated_records(tmp_path: Path) -> None:
    write_corpus(tmp_path, **SMALL)
    rows = [json.loads(line) for line in (tmp_path / "train/code.jsonl").read_text().splitlines()]
    assert rows == list(generate_records("code", split="train", num_rows=12, seed=7))


def test_domains_may_differ_in_size(tmp_path: Path) -> None:
    num_rows = {name: 1 + number for number, name in enumerate(DOMAIN_NAMES)}
    write_corpus(tmp_path, **{**SMALL, "num_rows": num_rows})
    assert {name: (tmp_path / f"train/{name}.jsonl").read_bytes().count(b"\n") for name in DOMAIN_NAMES} == num_rows


def test_default_sizes_are_unequal_and_name_every_domain() -> None:
    assert tuple(DEFAULT_NUM_ROWS) == DOMAIN_NAMES
    assert sum(DEFAULT_NUM_ROWS.values()) == 12_000
    assert len(set(DEFAULT_NUM_ROWS.values())) == len(DOMAIN_NAMES)


def test_the_same_settings_give_the_same_bytes(tmp_path: Path) -> None:
    write_corpus(tmp_path / "one", **SMALL)
    write_corpus(tmp_path / "two", **SMALL)
    assert bytes_of_files(tmp_path / "one") == bytes_of_files(tmp_path / "two")


def test_a_second_call_writes_nothing(tmp_path: Path) -> None:
    write_corpus(tmp_path, **SMALL)
    inodes = {path: path.stat().st_ino for path in tmp_path.rglob("*")}
    write_corpus(tmp_path, **SMALL)
    assert {path: path.stat().st_ino for path in tmp_path.rglob("*")} == inodes


@pytest.mark.parametrize("change", [{"seed": 8}, {"num_valid_rows": 6}, {"num_rows": dict.fromkeys(DOMAIN_NAMES, 13)}])
def test_other_settings_replace_the_corpus(tmp_path: Path, change: dict) -> None:
    write_corpus(tmp_path / "reused", **SMALL)
    write_corpus(tmp_path / "reused", **{**SMALL, **change})
    write_corpus(tmp_path / "new", **{**SMALL, **change})
    assert bytes_of_files(tmp_path / "reused") == bytes_of_files(tmp_path / "new")


@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_a_missing_or_changed_file_is_written_again(tmp_path: Path, damage: str) -> None:
    write_corpus(tmp_path, **SMALL)
    files = bytes_of_files(tmp_path)
    path = tmp_path / "test/science.jsonl"
    path.unlink() if damage == "missing" else path.write_bytes(b"{}\n")
    write_corpus(tmp_path, **SMALL)
    assert bytes_of_files(tmp_path) == files


def test_an_interrupted_write_is_completed_by_the_next_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from versatune_ds.data.synthetic import corpus

    def fail_at_code(path: Path, chunks: object) -> str:
        if path.name == "code.jsonl":
            raise KeyboardInterrupt
        return write_atomically(path, chunks)

    write_atomically = corpus._write_atomically
    monkeypatch.setattr(corpus, "_write_atomically", fail_at_code)
    with pytest.raises(KeyboardInterrupt):
        write_corpus(tmp_path, **SMALL)
    monkeypatch.undo()
    assert not (tmp_path / "train/code.jsonl").exists()
    write_corpus(tmp_path, **SMALL)
    write_corpus(tmp_path / "complete", **SMALL)
    assert all(bytes_of_files(tmp_path)[name] == data for name, data in bytes_of_files(tmp_path / "complete").items())


@pytest.mark.parametrize("name", ["train/law.jsonl", "corpus.json"])
def test_files_that_the_corpus_did_not_write_are_never_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / name).write_text('{"mine": 1}\n')
    with pytest.raises(ValueError, match=rf"{name}: not written by the built-in corpus, so not overwritten"):
        write_corpus(tmp_path, **SMALL)
    assert bytes_of_files(tmp_path) == {name: b'{"mine": 1}\n'}


def test_sizes_must_be_given_for_every_domain_and_no_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_rows: no value for general"):
        write_corpus(tmp_path, **{**SMALL, "num_rows": dict.fromkeys(DOMAIN_NAMES[:-1], 2)})
    with pytest.raises(ValueError, match="num_rows: unknown domain 'laws'; did you mean 'law'"):
        write_corpus(tmp_path, **{**SMALL, "num_rows": {**DEFAULT_NUM_ROWS, "laws": 2}})


def test_too_many_records_fail_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_rows: law/valid has"):
        write_corpus(tmp_path, **{**SMALL, "num_valid_rows": 10**8})
    assert not list(tmp_path.iterdir())
