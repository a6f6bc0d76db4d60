"""Warnings about a recipe's files are logged once, by the process that trains."""

import pytest
from chat_data import chat_rows, write_jsonl

from versatune_ds.config import DataConfig
from versatune_ds.data.sources.domain_files import check_data_files, domain_files, has_test_rows


@pytest.fixture
def data(tmp_path):
    """A folder with two domains, one of them without held-out examples, and a stray file in every split."""
    for split, names in {"train": ("law", "code"), "valid": ("code",), "test": ("law",)}.items():
        (tmp_path / split).mkdir()
        (tmp_path / split / "notes.md").write_text("notes")
        for name in names:
            write_jsonl(tmp_path / split / f"{name}.jsonl", chat_rows(1))
    return DataConfig(folder=tmp_path)


def test_a_check_before_the_run_leaves_the_warnings_to_the_run(data, tmp_path, caplog):
    check_data_files(data, cache_dir=tmp_path)
    assert caplog.messages == []
    domain_files(data, cache_dir=tmp_path)
    domain_files(data, cache_dir=tmp_path)
    train, valid, held_out = caplog.messages
    assert train == f"data.folder: {tmp_path}/train/notes.md is not a data file; skipped"
    assert valid == f"data.folder: {tmp_path}/valid/notes.md is not a data file; skipped"
    assert "valid has no file for law: the loss there is not measured" in held_out


def test_repeated_searches_for_test_rows_warn_of_a_stray_file_once(data, caplog):
    assert [has_test_rows(data) for _ in range(20)] == [True] * 20
    assert len(caplog.messages) == 1
