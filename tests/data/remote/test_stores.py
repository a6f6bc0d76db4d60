"""Files, globs and folders of a store that lists its files give the same shards as the same files on disk."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
from pathlib import Path

import datasets
import fsspec
import pytest
from chat_data import chat_rows, tiny_tokenizer, write_jsonl
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from versatune_ds.config import DataConfig
from versatune_ds.config.recipe import RunSection
from versatune_ds.data.prepare.domains import prepare_domains
from versatune_ds.data.remote import cache, fetch, retries, stores
from versatune_ds.data.remote.errors import RemoteChangedError, RemoteUnreachableError
from versatune_ds.data.remote.remote_file import RemoteFile
from versatune_ds.data.sources import domain_files as domains_module
from versatune_ds.data.sources.domain_files import (
    check_data_files,
    domain_files,
    domain_names,
    has_test_rows,
)
from versatune_ds.data.sources.find_files import find_files
from versatune_ds.progress import ByteWork

KEY = "data.domains.law.train"


@pytest.fixture(autouse=True)
def store(monkeypatch):
    monkeypatch.setattr(retries, "PAUSES_SECONDS", [0.0, 0.0])
    monkeypatch.setattr(cache, "PAUSES_SECONDS", [0.0, 0.0])
    cache.forget_checks()
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    yield memory
    memory.store.clear()


def put(local, address):
    """Copy a folder into the store."""
    memory = fsspec.filesystem("memory")
    for path in sorted(local.rglob("*")):
        if path.is_file():
            memory.pipe(f"{address}/{path.relative_to(local)}", path.read_bytes())


def find(tmp_path, *sources):
    cache.forget_checks()
    return find_files(sources, key=KEY, cache_dir=tmp_path / "cache")


def names(files):
    return [path.name for path in files]


@pytest.fixture
def rows(tmp_path):
    folder = tmp_path / "rows"
    for number, name in enumerate(("b.jsonl", "a.jsonl", "a/z.jsonl", "a-b/y.jsonl", ".hidden.jsonl", ".git/d.jsonl")):
        write_jsonl(folder / name, chat_rows(3, topic=f"topic {number}"))
    (folder / "c.jsonl.gz").write_bytes(gzip.compress((folder / "b.jsonl").read_bytes()))
    (folder / "notes.md").write_text("notes")
    (folder / "README.txt").write_text("about")
    write_jsonl(folder / "_delta_log" / "log.jsonl", [])
    put(folder, "memory://data/rows")
    return folder


@pytest.mark.parametrize("pattern", ["", "/a.jsonl", "/*.jsonl", "/**/*.jsonl", "/[ab].jsonl", "/a*/*.jsonl"])
def test_the_files_and_their_order_are_those_of_the_disk(rows, tmp_path, pattern, caplog):
    on_disk = [path.read_bytes() for path in find(tmp_path, f"{rows}{pattern}") if "_delta_log" not in path.parts]
    fetched = find(tmp_path, f"memory://data/rows{pattern}")
    assert [path.read_bytes() for path in fetched] == on_disk
    if pattern == "":
        assert names(fetched) == ["z.jsonl", "y.jsonl", "a.jsonl", "b.jsonl", "c.jsonl.gz"]
        assert "memory:///data/rows/README.txt" in caplog.text
        assert "hidden" not in caplog.text


def test_a_saved_data_set_is_read_in_its_own_order_and_its_splits_are_refused(tmp_path):
    saved = datasets.Dataset.from_list(chat_rows(30))
    saved.save_to_disk(tmp_path / "saved", num_shards=3)
    put(tmp_path / "saved", "memory://data/saved")
    fetched = find(tmp_path, "memory://data/saved")
    assert [path.read_bytes() for path in fetched] == [p.read_bytes() for p in find(tmp_path, str(tmp_path / "saved"))]
    put(tmp_path / "saved", "memory://folder/train")
    with pytest.raises(ValueError, match=r"data.folder: .*folder/train is one saved data set, not a folder of domains"):
        domain_files(DataConfig(folder="memory://folder"), cache_dir=tmp_path)
    fsspec.filesystem("memory").pipe("memory://data/splits/dataset_dict.json", b"{}")
    with pytest.raises(ValueError, match="has several splits; give one, for example memory:///data/splits/train"):
        find(tmp_path, "memory://data/splits")


def prepared(data, folder):
    """Return the prepared files of all domains: name to digest."""
    cache.forget_checks()
    prepare_domains(data, tokenizer=tiny_tokenizer(), cache_dir=folder)
    files = [path for path in folder.glob("*/*/*") if path.parent.name in ("train", "valid")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_remote_files_give_the_same_shards_bit_for_bit(tmp_path):
    for name in ("train/law.jsonl", "train/code/part.jsonl", "valid/law.jsonl", "test/law.jsonl"):
        write_jsonl(tmp_path / "data" / name, chat_rows(40, topic=name))
    put(tmp_path / "data", "memory://data")
    local = prepared(DataConfig(folder=tmp_path / "data"), tmp_path / "local")
    assert len(local) == 11  # no held-out rows of code
    remote = DataConfig(folder="memory://data")
    assert prepared(remote, tmp_path / "remote") == local
    assert domain_names(remote) == ("code", "law")
    assert has_test_rows(remote)
    assert domains_module.test_files(remote, cache_dir=tmp_path)["law"].train == ("memory://data/test/law.jsonl",)
    one_by_one = {
        "code": {"train": "memory://data/train/code/*.jsonl", "valid": []},
        "law": {"train": ["memory://data/train/law.jsonl"], "valid": "memory://data/valid/law.jsonl"},
    }
    assert prepared(DataConfig(domains=one_by_one), tmp_path / "listed") == local


def test_only_a_changed_file_is_fetched_again(rows, tmp_path, store, caplog):
    caplog.set_level(logging.INFO)
    before = find(tmp_path, "memory://data/rows/*.jsonl")
    store.pipe("memory://data/rows/b.jsonl", b"{}\n")
    after = find(tmp_path, "memory://data/rows/*.jsonl")
    assert (before[0], after[1].read_bytes()) == (after[0], b"{}\n")
    assert before[1] != after[1]
    lines = [line for line in caplog.messages if "fetched" in line]
    assert [line.partition(": 0.0 MiB")[0] for line in lines] == [
        f"{KEY}: fetched {what} of memory://data/rows/*.jsonl" for what in ("2 files", "1 file")
    ]


def test_a_name_with_brackets_is_found_as_written_and_a_scheme_in_capitals_is_known(tmp_path, store):
    store.pipe("memory://data/a[1].jsonl", b"{}\n")
    store.pipe("memory://data/a1.jsonl", b"[]\n")
    assert [path.read_bytes() for path in find(tmp_path, "memory://data/a[1].jsonl")] == [b"{}\n"]
    assert [path.read_bytes() for path in find(tmp_path, "memory://data/a[0-9].jsonl")] == [b"[]\n"]
    assert [path.read_bytes() for path in find(tmp_path, "MEMORY://data/a1.jsonl")] == [b"[]\n"]


def test_a_file_listed_twice_is_refused(rows, tmp_path):
    with pytest.raises(ValueError, match=r"a\.jsonl is listed 2 times"):
        find(tmp_path, "memory://data/rows/a.jsonl", "memory://data/rows/*.jsonl")


def test_files_are_checked_without_fetching_them(rows, tmp_path):
    folder = tmp_path / "cache"
    data = DataConfig(domains={"law": "memory://data/rows", "code": "memory://data/gone.jsonl"})
    with pytest.raises(ValueError, match=r"^data.domains.code.train: no such file or folder: memory://data/gone.jsonl"):
        check_data_files(data, cache_dir=folder)
    assert not any(path.is_dir() for path in folder.glob("remote/*"))


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("memory://data/rows/*.parquet", "matches no file"),
        ("memory://data/*", "matches no file; it matches the folder memory:///data/rows, whose files are"),
        ("memory://data/rows/notes.md", "unknown format; expected an address that ends in one of .jsonl"),
        ("memory://data/none", "no such file or folder: memory://data/none"),
    ],
)
def test_an_address_without_data_is_refused(rows, tmp_path, source, line):
    with pytest.raises(ValueError, match=f"^{KEY}: ") as error:
        find(tmp_path, source)
    assert line in str(error.value)


def test_a_remote_folder_needs_domains(store, tmp_path):
    store.pipe("memory://data/train/law.jsonl", b"{}\n")
    store.pipe("memory://data/train/law/x.jsonl", b"{}\n")
    with pytest.raises(ValueError, match="are the same domain 'law'; put them into one folder law/"):
        domain_files(DataConfig(folder="memory://data"), cache_dir=tmp_path)
    with pytest.raises(
        ValueError, match=r"^data.folder: memory://other/train is not a folder; expected memory://other"
    ):
        domain_files(DataConfig(folder="memory://other"), cache_dir=tmp_path)
    with pytest.raises(ValueError, match=r"folders of a web server cannot be listed; name the files in data.domains"):
        domain_files(DataConfig(folder="https://host/data"), cache_dir=tmp_path)


@pytest.mark.parametrize(("scheme", "package"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_a_store_whose_package_is_missing_is_named_with_what_to_install(tmp_path, monkeypatch, scheme, package):
    def missing(name):
        raise ImportError(f"Install {package}")

    monkeypatch.setattr(stores.fsspec, "filesystem", missing)
    with pytest.raises(ValueError, match=rf"^{KEY}: {scheme}:// needs the package {package}; pip install {package}$"):
        find(tmp_path, f"{scheme}://bucket/law.jsonl")


class ResponseError(Exception):
    """An error as libraries of stores raise it."""

    def __init__(self, status):
        super().__init__("refused")
        self.response = type("Response", (), {"status_code": status})()


class NoCredentialsError(Exception):
    """As botocore raises it."""


@pytest.mark.parametrize(
    ("address", "error", "line"),
    [
        ("s3://b/x.jsonl", PermissionError("Forbidden"), "access denied (Forbidden); credentials are read from AWS_"),
        ("s3://b/x.jsonl", NoCredentialsError("none"), "access denied (none); credentials are read from AWS_"),
        ("gs://b/x.jsonl", ResponseError(403), "access denied (403 refused); credentials are read from GOOGLE_"),
        (
            "hf://datasets/a/b/x.jsonl",
            ResponseError(401),
            "access denied (401 refused); the token is read from HF_TOKEN",
        ),
        ("hf://datasets/a/b/x.jsonl", ResponseError(404), "correct the address; a private one is found with a token"),
        ("s3://b/x.jsonl", TimeoutError("timed out"), "cannot be read (timed out); check the network"),
    ],
)
def test_what_a_library_raises_becomes_one_line_with_what_to_do(tmp_path, monkeypatch, address, error, line):
    class Failing:
        def invalidate_cache(self):
            raise error

    monkeypatch.setattr(stores.fsspec, "filesystem", lambda name: Failing())
    with pytest.raises(ValueError, match=f"^{KEY}: ") as raised:
        find(tmp_path, address)
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_empty_file_that_shows_a_folder_of_s3_is_not_listed():
    class Listing:
        def invalidate_cache(self):
            """Cache nothing."""

        def find(self, address, detail):
            names = ("b/law/", "b/law/x.jsonl")
            return {name: {"name": name, "size": 0, "type": "file", "ETag": '"1"'} for name in names}

    (file,) = stores.FsspecStore(Listing(), scheme="s3").below("s3://b/law")
    assert file == RemoteFile(address="s3://b/law/x.jsonl", num_bytes=0, version='etag="\\"1\\""')


def test_a_run_folder_and_other_paths_cannot_be_addresses():
    with pytest.raises(
        ValidationError,
        match=r"output_dir\n.*expected a path of this machine, not an address; only data files",
    ):
        RunSection(name="x", output_dir="s3://b/runs")
    with pytest.raises(ValidationError, match=r"cache_dir\n.*not an address"):
        DataConfig(folder="memory://data", cache_dir="gs://b/cache")


@pytest.mark.parametrize("folder", ["memory://data", Path("rows")])
def test_a_folder_of_a_config_is_the_same_when_it_is_read_back_from_json(folder):
    data = DataConfig(folder=str(folder))
    assert data.folder == DataConfig(folder=folder).folder == folder
    assert DataConfig.model_validate_json(data.model_dump_json()) == data


class BreakingStore:
    """A store whose answers end after given numbers of bytes, and begin where they are asked or at 0."""

    def __init__(self, content, ends, starts_anywhere):
        self.content, self.ends, self.starts_anywhere = content, list(ends), starts_anywhere
        self.file = RemoteFile(address="memory://x.jsonl", num_bytes=len(content), version="1")

    def info(self, address):
        return self.file

    def read(self, file, *, start):
        start = start if self.starts_anywhere else 0
        return start, self.blocks(start)

    def blocks(self, start):
        end = self.ends.pop(0) if self.ends else len(self.content)
        for place in range(start, min(start + end, len(self.content)), 7):
            yield self.content[place : min(place + 7, start + end)]
        if end % 2:
            raise RemoteUnreachableError("broke off")


@given(content=st.binary(max_size=60), ends=st.lists(st.integers(0, 60), max_size=6), starts_anywhere=st.booleans())
def test_wherever_answers_break_off_a_file_is_complete_or_absent(tmp_path_factory, content, ends, starts_anywhere):
    folder = tmp_path_factory.mktemp("cache") / "remote"
    store, work = BreakingStore(content, ends, starts_anywhere), ByteWork("fetching", num_bytes=len(content))
    pauses, retries.PAUSES_SECONDS = retries.PAUSES_SECONDS, [0.0, 0.0]
    try:
        path = fetch.fetch(store.file, store=store, folder=folder, work=work)
    except RemoteUnreachableError:
        assert not [path for path in folder.glob("*/*/*") if not path.parent.name.startswith(".")]
        assert not fetch.is_cached(store.file, folder=folder)
    else:
        assert path.read_bytes() == content
        assert work.num_done == len(content)
    finally:
        retries.PAUSES_SECONDS = pauses


def test_a_version_that_is_new_at_the_end_of_reading_is_never_stored_under_the_old_one(tmp_path):
    store = BreakingStore(b"{}\n" * 10, [], starts_anywhere=True)
    listed, store.file = store.file, RemoteFile(address=store.file.address, num_bytes=30, version="2")
    with pytest.raises(RemoteChangedError):
        fetch.fetch(listed, store=store, folder=tmp_path / "remote", work=ByteWork("fetching", num_bytes=30))
    assert not fetch.is_cached(listed, folder=tmp_path / "remote")


def test_the_line_of_a_transfer_has_its_rate_and_the_time_left():
    work = ByteWork("fetching 2 files of s3://b", num_bytes=600 << 20)
    work.started = 0.0
    assert work.line(2.0) == "fetching 2 files of s3://b  0 of 600 MiB  0.0 MiB/s  0:02"
    work.add(120 << 20)
    assert work.line(5.0) == "fetching 2 files of s3://b  120 of 600 MiB  24.0 MiB/s  0:20 left"
    unknown = ByteWork("fetching", num_bytes=None)
    unknown.started = 0.0
    unknown.add(3 << 20)
    assert unknown.line(2.0) == "fetching  3 MiB  1.5 MiB/s  0:02"


def test_the_list_of_a_folder_is_recorded_for_a_start_without_a_network(rows, tmp_path, store, monkeypatch, caplog):
    fetched = find(tmp_path, "memory://data/rows")
    record = next(path for path in (tmp_path / "cache" / "remote").glob("*.json"))
    assert [entry["address"].rpartition("/")[2] for entry in json.loads(record.read_text())["files"]] == names(fetched)
    monkeypatch.setattr(stores.FsspecStore, "info", lambda self, address: _raise(RemoteUnreachableError("no route")))
    assert find(tmp_path, "memory://data/rows") == fetched
    assert "memory://data/rows cannot be reached (no route), so whether it changed is not known" in caplog.text


def test_a_folder_without_held_out_files_starts_without_a_network_too(tmp_path, store, monkeypatch):
    store.pipe("memory://data/train/law.jsonl", b"{}\n")
    data = DataConfig(folder="memory://data")
    online = domain_files(data, cache_dir=tmp_path)
    find_files(online["law"].train, key="data.folder", cache_dir=tmp_path)
    assert not has_test_rows(data, cache_dir=tmp_path)
    cache.forget_checks()
    monkeypatch.setattr(stores.FsspecStore, "info", lambda self, address: _raise(RemoteUnreachableError("no route")))
    assert domain_names(data, cache_dir=tmp_path) == ("law",)
    assert domain_files(data, cache_dir=tmp_path) == online
    assert not has_test_rows(data, cache_dir=tmp_path)
    assert domain_names(data) is None  # nothing is known without a cache


def _raise(error):
    raise error
