"""A folder's domains are its data files and folders, and nothing else."""

from __future__ import annotations

import datasets
import pytest
from chat_data import chat_rows, write_jsonl

from versatune_ds.config import DataConfig
from versatune_ds.data.sources.domain_files import check_data_files, domain_files


def domains_of(folder):
    return list(domain_files(DataConfig(folder=folder), cache_dir=folder))


def test_descriptions_in_a_folder_of_domains_are_not_domains(tmp_path, caplog):
    for name in ("law.jsonl", "README.txt", "LICENSE.txt", "dataset_infos.json", "notes.md", "_SUCCESS"):
        write_jsonl(tmp_path / "train" / name, chat_rows(2))
    assert domains_of(tmp_path) == ["law"]
    (warning,) = caplog.messages
    train = f"{tmp_path}/train"
    listed = f"{train}/LICENSE.txt, {train}/README.txt, {train}/_SUCCESS and 2 more are not data files; skipped"
    assert warning == f"data.folder: {listed}"


def test_a_domain_may_have_the_name_of_a_description(tmp_path):
    for name in ("license.jsonl", "state.json", "security.txt"):
        write_jsonl(tmp_path / "train" / name, chat_rows(2))
    assert domains_of(tmp_path) == ["license", "security", "state"]


def test_a_linked_folder_is_a_domain_and_a_broken_link_is_refused(tmp_path):
    write_jsonl(tmp_path / "disk" / "a.jsonl", chat_rows(2))
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "law").symlink_to(tmp_path / "disk")
    assert domains_of(tmp_path) == ["law"]
    (tmp_path / "train" / "code.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(ValueError, match=r"^data.folder: .*code.jsonl is a link to .*gone.jsonl, which does not exist"):
        check_data_files(DataConfig(folder=tmp_path), cache_dir=tmp_path)


def test_a_saved_data_set_with_splits_is_not_a_folder_of_domains(tmp_path):
    split = datasets.Dataset.from_list(chat_rows(2))
    datasets.DatasetDict(train=split, test=split).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"^data.folder: .*saved/train is one saved data set, not a folder of domains"):
        domains_of(tmp_path / "saved")


def test_files_beside_the_missing_train_folder_are_named(tmp_path):
    for name in ("law.jsonl", "code.jsonl", "notes.txt.bak"):
        (tmp_path / name).write_text("{}\n")
    with pytest.raises(
        ValueError, match=r"train is not a folder; move code\.jsonl, law\.jsonl of .* there, or name them"
    ):
        domains_of(tmp_path)
