"""A folder's data files are found through links, each once; what only describes the data is left out and listed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from versatune_ds.data.sources.data_folders import files_below, is_description, without_repeats


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


def test_links_that_go_round_are_entered_once(tmp_path):
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


def test_repeats_among_any_paths_keep_the_name_that_is_no_link(tmp_path):
    real = touch(tmp_path / "b.jsonl")
    first, second = tmp_path / "a.jsonl", tmp_path / "c.jsonl"
    for link in (first, second):
        link.symlink_to(real)
    assert without_repeats([second, real, first]) == ((real,), (first, second))
    assert without_repeats([second, first]) == ((first,), (second,))


@pytest.mark.parametrize("name", ["b.jsonl", "part1"])
def test_a_link_that_leads_nowhere_is_refused(tmp_path, name):
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
def test_what_is_about_the_data_is_known_by_its_name(name):
    assert is_description(Path(name))


@pytest.mark.parametrize("name", DATA)
def test_a_name_that_may_be_a_domain_is_data(name):
    assert not is_description(Path(name))


def test_what_is_no_data_is_listed_and_what_is_hidden_is_not(tmp_path):
    touch(*(tmp_path / "law" / name for name in ("a.jsonl", "README.md", "LICENSE.txt", "_SUCCESS", "a.jsonl.crc")))
    touch(tmp_path / "law" / ".git" / "b.jsonl", tmp_path / "law" / "_delta_log" / "0.json")
    os.mkfifo(tmp_path / "law" / "pipe.jsonl")
    assert below(tmp_path / "law") == ["a.jsonl"]
    skipped = ["LICENSE.txt", "README.md", "_SUCCESS", "_delta_log", "a.jsonl.crc", "pipe.jsonl"]
    assert below(tmp_path / "law", "skipped") == skipped


def test_what_datasets_keeps_beside_its_arrow_files_is_no_data(tmp_path):
    saved = tmp_path / "law" / "saved"
    names = ("data-00000-of-00001.arrow", "cache-1f2e.arrow", "state.json", "dataset_info.json")
    touch(*(saved / name for name in names))
    assert below(tmp_path / "law") == ["saved/data-00000-of-00001.arrow"]
