"""Paths, globs, folders, saved data sets and Hub names become an ordered list of files."""

from __future__ import annotations

import os
from pathlib import Path

import datasets
import pytest
from chat_data import chat_rows, write_jsonl

from versatune_ds.config import HubDataset
from versatune_ds.data.encoding.forms import parse_example
from versatune_ds.data.sources.find_files import files_below, find_files, is_description, without_repeats
from versatune_ds.data.sources.readers import read_records


def find(*sources):
    return find_files(
        [str(source) if not isinstance(source, HubDataset) else source for source in sources], key="data.x"
    )


def names(files):
    return [file.name for file in files]


@pytest.fixture
def folder(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "deep/c.jsonl.gz", "notes.md", ".hidden.jsonl", ".git/d.jsonl"):
        write_jsonl(tmp_path / "rows" / name, [])
    return tmp_path / "rows"


def test_a_file_a_glob_and_a_folder_are_found_in_sorted_order(folder):
    assert names(find(folder / "b.jsonl")) == ["b.jsonl"]
    assert names(find(folder / "*.jsonl")) == ["a.jsonl", "b.jsonl"]
    assert names(find(folder / "**/*.jsonl*")) == ["a.jsonl", "b.jsonl", "c.jsonl.gz"]


def test_a_list_keeps_its_own_order(folder):
    assert names(find(folder / "b.jsonl", folder / "deep")) == ["b.jsonl", "c.jsonl.gz"]
    assert names(find(folder / "deep", folder / "b.jsonl")) == ["c.jsonl.gz", "b.jsonl"]


def test_files_of_a_folder_that_are_not_data_are_skipped_with_a_warning(folder, caplog):
    assert names(find(folder)) == ["a.jsonl", "b.jsonl", "c.jsonl.gz"]
    assert "notes.md is not a data file; skipped" in caplog.text
    assert "hidden" not in caplog.text


def test_a_linked_folder_gives_the_same_files_by_folder_and_by_glob(tmp_path):
    write_jsonl(tmp_path / "law" / "part0" / "x.jsonl", [])
    write_jsonl(tmp_path / "disk" / "y.jsonl", [])
    (tmp_path / "law" / "part1").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "round").symlink_to(tmp_path / "disk")
    assert names(find(tmp_path / "law")) == ["x.jsonl", "y.jsonl"]
    assert names(find(tmp_path / "law/**/*.jsonl")) == ["x.jsonl", "y.jsonl"]


def test_a_folder_whose_name_looks_like_a_pattern_is_read_literally(tmp_path):
    for name in ("da ta [x]/[1] a?.jsonl", "da ta [x]/b.jsonl", "da ta x/c.jsonl"):
        write_jsonl(tmp_path / name, [])
    assert names(find(tmp_path / "da ta [x]" / "*.jsonl")) == ["[1] a?.jsonl", "b.jsonl"]
    assert names(find(tmp_path / "da ta [x]" / "[1] a?.jsonl")) == ["[1] a?.jsonl"]
    assert names(find(tmp_path / "da ta [xyz]" / "*.jsonl")) == ["c.jsonl"]
    with pytest.raises(ValueError, match=r"matches no file; \[ \] are pattern characters: write \[\[\] for a \["):
        find(tmp_path / "*" / "[x]" / "*.jsonl")


def test_descriptions_and_folders_that_a_glob_matches_are_skipped_with_a_warning(folder, caplog):
    write_jsonl(folder / "LICENSE.txt", [])
    (folder / "notes.md").unlink()
    assert names(find(folder / "*")) == ["a.jsonl", "b.jsonl"]
    assert "LICENSE.txt is not a data file; skipped" in caplog.text
    assert "deep matches" in caplog.text
    with pytest.raises(
        ValueError, match=r"matches no file; it matches the folder .*rows/deep, whose files are .*/d\*/\*"
    ):
        find(folder / "d*")


def test_one_file_under_two_names_is_refused_in_a_list(folder):
    (folder / "deep" / "link.jsonl").symlink_to(folder / "a.jsonl")
    with pytest.raises(ValueError, match=r"a.jsonl is listed 2 times"):
        find(folder / "a.jsonl", folder / "deep" / "link.jsonl")


def test_a_file_without_read_permission_is_an_error_with_its_path(folder, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "a.jsonl")
    with pytest.raises(ValueError, match=r"^data.x: .*a.jsonl cannot be read: permission denied; change its"):
        find(folder)


def test_a_folder_with_several_splits_is_refused(tmp_path):
    split = datasets.Dataset.from_list(chat_rows(2))
    datasets.DatasetDict(train=split, test=split).save_to_disk(tmp_path / "law" / "saved")
    with pytest.raises(ValueError, match=r"law/saved has several splits \(test, train\); give one"):
        find(tmp_path / "law")


@pytest.mark.parametrize(
    ("sources", "reason"),
    [
        (["absent.jsonl"], r"no such file or folder: '.*absent.jsonl'; a Hub data set is written \{hub: owner/name\}"),
        (["notess.md"], r"no such file or folder: '.*notess.md'; did you mean '.*/notes.md'\?"),
        (["*.csv"], "matches no file"),
        (["notes.md"], r"notes.md: unknown format '.md'; known: .jsonl"),
        (["a.jsonl", "*.jsonl"], "a.jsonl is listed 2 times, so its rows would count 2 times"),
        (["empty"], "empty has no data file"),
    ],
)
def test_sources_without_readable_files_are_refused(folder, sources, reason):
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match=reason) as caught:
        find(*(folder / source for source in sources))
    assert str(caught.value).startswith("data.x: ")


def messages_of(files):
    return [list(parse_example(record.json_text).turns) for file in files for record in read_records(file)]


def test_a_data_set_saved_to_disk_is_read(tmp_path):
    rows = chat_rows(5)
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    assert messages_of(find(tmp_path / "saved")) == [row["messages"] for row in rows]


def test_a_saved_data_set_with_several_splits_is_refused(tmp_path):
    split = datasets.Dataset.from_list(chat_rows(2))
    datasets.DatasetDict(train=split, test=split).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"has several splits \(test, train\); give one, for example .*saved/train"):
        find(tmp_path / "saved")
    assert len(messages_of(find(tmp_path / "saved" / "train"))) == 2


def test_a_hub_name_is_loaded_through_datasets(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = chat_rows(4)
    write_jsonl(tmp_path / "owner_name" / "train.jsonl", rows)
    write_jsonl(tmp_path / "owner_name" / "test.jsonl", rows[:1])
    source = HubDataset(hub=str(tmp_path / "owner_name"), split="train")
    assert messages_of(find(source)) == [row["messages"] for row in rows]
    with pytest.raises(ValueError, match=r"data.x: cannot load '.*owner_name' \(split 'dev'\): Unknown split"):
        find(HubDataset(hub=str(tmp_path / "owner_name"), split="dev"))


def test_code_that_comes_with_a_data_set_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    proof = tmp_path / "was_run"
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "evil.py").write_text(f"open({str(proof)!r}, 'w')\n")
    with pytest.raises(ValueError, match="cannot load"):
        find(HubDataset(hub=str(tmp_path / "evil")))
    assert not proof.exists()


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}\n")
    return paths[0]


def below(folder, part="files"):
    found = dict(zip(("files", "skipped", "repeated"), files_below(folder, key="data.x"), strict=True))
    return [path.relative_to(folder).as_posix() for path in found[part]]


def test_linked_folders_and_files_are_read_under_their_names(tmp_path):
    touch(tmp_path / "law" / "part0" / "a.jsonl", tmp_path / "disk" / "deep" / "b.jsonl", tmp_path / "disk2" / "c.csv")
    (tmp_path / "law" / "part1").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "further").symlink_to(tmp_path / "disk2")
    (tmp_path / "law" / "z.jsonl").symlink_to(touch(tmp_path / "elsewhere.jsonl"))
    assert below(tmp_path / "law") == ["part0/a.jsonl", "part1/deep/b.jsonl", "part1/further/c.csv", "z.jsonl"]


def test_circular_links_are_followed_once(tmp_path):
    touch(tmp_path / "law" / "a" / "x.jsonl")
    (tmp_path / "law" / "a" / "again").symlink_to(tmp_path / "law" / "a")
    (tmp_path / "law" / "0").symlink_to(tmp_path / "law" / "a")
    (tmp_path / "law" / "self").symlink_to(tmp_path / "law")
    assert below(tmp_path / "law") == ["a/x.jsonl"]


def test_a_link_to_a_folder_above_does_not_bring_in_other_domains(tmp_path, caplog):
    touch(tmp_path / "train" / "law" / "x.jsonl", tmp_path / "train" / "code" / "y.jsonl")
    (tmp_path / "train" / "law" / "up").symlink_to(tmp_path / "train")
    assert below(tmp_path / "train" / "law") == ["x.jsonl"]
    assert "law/up is a link to a folder above" in caplog.text


def test_a_file_with_a_second_name_is_read_once(tmp_path):
    touch(tmp_path / "law" / "b.jsonl")
    (tmp_path / "law" / "a.jsonl").symlink_to("b.jsonl")
    assert below(tmp_path / "law") == ["b.jsonl"]
    assert below(tmp_path / "law", "repeated") == ["a.jsonl"]


def test_of_several_names_of_a_file_the_one_that_is_not_a_link_is_kept(tmp_path):
    real = touch(tmp_path / "b.jsonl")
    first, second = tmp_path / "a.jsonl", tmp_path / "c.jsonl"
    for link in (first, second):
        link.symlink_to(real)
    assert without_repeats([second, real, first]) == ((real,), (first, second))
    assert without_repeats([second, first]) == ((first,), (second,))


@pytest.mark.parametrize("name", ["b.jsonl", "part1"])
def test_a_broken_link_is_refused(tmp_path, name):
    touch(tmp_path / "law" / "a.jsonl")
    (tmp_path / "law" / name).symlink_to(tmp_path / "gone")
    with pytest.raises(
        ValueError, match=rf"^data.x: .*law/{name} is a link to .*gone, which does not exist; fix or remove"
    ):
        below(tmp_path / "law")


def test_a_folder_that_cannot_be_listed_is_refused_not_skipped(tmp_path, monkeypatch):
    touch(tmp_path / "law" / "shut" / "a.jsonl", tmp_path / "law" / "b.jsonl")
    listed = Path.iterdir

    def iterdir(path):
        if path.name == "shut":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(ValueError, match=r"^data.x: .*law/shut cannot be listed: Permission denied$"):
        below(tmp_path / "law")


DESCRIPTIONS = [
    *("README.txt", "readme.en.txt", "LICENSE.txt", "Licence-MIT.txt", "NOTICE.txt", "CITATION.txt", "CHANGELOG.txt"),
    *("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "metadata.json", "croissant.json"),
    *("md5sums.txt", "SHA256SUMS.txt", "checksums.txt", "requirements.txt", "~$law.csv", "_delta_log"),
]
DATA = [
    "license.jsonl",
    "security.txt",
    "state.json",
    "readme.jsonl",
    "metadata.csv",
    "my_readme.txt",
    "law.json",
    "_x.csv",
]


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_descriptions_of_data_are_recognised_by_name(name):
    assert is_description(Path(name))


@pytest.mark.parametrize("name", DATA)
def test_a_name_that_may_be_a_domain_is_not_a_description(name):
    assert not is_description(Path(name))


def test_skipped_files_are_listed_and_hidden_ones_are_not(tmp_path):
    touch(*(tmp_path / "law" / name for name in ("a.jsonl", "README.md", "LICENSE.txt", "_SUCCESS", "a.jsonl.crc")))
    touch(tmp_path / "law" / ".git" / "b.jsonl", tmp_path / "law" / "_delta_log" / "0.json")
    os.mkfifo(tmp_path / "law" / "pipe.jsonl")
    assert below(tmp_path / "law") == ["a.jsonl"]
    skipped = ["LICENSE.txt", "README.md", "_SUCCESS", "_delta_log", "a.jsonl.crc", "pipe.jsonl"]
    assert below(tmp_path / "law", "skipped") == skipped


def test_files_that_datasets_keeps_beside_its_arrow_files_are_not_data(tmp_path):
    saved = tmp_path / "law" / "saved"
    names = ("data-00000-of-00001.arrow", "cache-1f2e.arrow", "state.json", "dataset_info.json")
    touch(*(saved / name for name in names))
    assert below(tmp_path / "law") == ["saved/data-00000-of-00001.arrow"]
