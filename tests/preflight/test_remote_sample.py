"""`versatune check` looks at remote files without fetching large ones."""

from __future__ import annotations

import json

import pytest
from chat_data import write_jsonl
from file_server import file_server

from versatune_ds.data.remote import cache
from versatune_ds.preflight import remote_sample
from versatune_ds.preflight.remote_sample import sample_sources

ROWS = [{"text": f"row {i:05d}"} for i in range(10_000)]
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


@pytest.fixture
def server(monkeypatch):
    cache.forget_checks()
    monkeypatch.setattr(remote_sample, "BEGINNING_BYTES", 2000)
    with file_server() as served:
        yield served


def sample(sources, tmp_path):
    return sample_sources(sources, key="data.domains.law.train", cache_dir=tmp_path / "cache", num_records=40)


def fetched(tmp_path):
    return [path.name for path in (tmp_path / "cache").glob("remote/*/*/*")]


def test_of_a_large_file_of_lines_the_beginning_is_read_and_its_rows_are_estimated(server, tmp_path, caplog):
    caplog.set_level("INFO")
    server.files["/law.jsonl"] = (LINES, '"1"')
    (found,) = sample([f"{server.address}/law.jsonl"], tmp_path)
    assert found.num_bytes == len(LINES)
    assert found.num_rows == pytest.approx(len(ROWS), rel=0.001)
    assert not found.is_counted
    assert [json.loads(record.json_text) for record in found.records[:2]] == ROWS[:4:2]  # 83 rows, 40 of them
    assert found.place(found.records[1]).endswith("/law.jsonl:3")
    assert fetched(tmp_path) == []
    assert "1 of 1 files are over 0 MiB; of these only the beginning is read" in caplog.text


def test_a_file_whose_first_line_is_longer_than_the_beginning_is_fetched(server, tmp_path, caplog):
    caplog.set_level("INFO")
    long_row = json.dumps({"text": "word " * 1000}).encode() + b"\n"
    server.files["/law.jsonl"] = (long_row * 5, '"1"')
    (found,) = sample([f"{server.address}/law.jsonl"], tmp_path)
    assert (found.num_rows, found.is_counted, len(found.records)) == (5, True, 5)
    assert "the first line of http://" in caplog.text


def test_small_files_and_other_formats_are_fetched_and_counted(server, tmp_path, caplog):
    caplog.set_level("INFO")
    server.files["/law.csv"] = (b"text\n" + b"a row\n" * 1000, '"1"')
    server.files["/few.jsonl"] = (LINES[:180], '"1"')
    write_jsonl(tmp_path / "local.jsonl", ROWS[:5])
    sources = [f"{server.address}/law.csv", f"{server.address}/few.jsonl", str(tmp_path / "local.jsonl")]
    found = sample(sources, tmp_path)
    assert [(part.num_rows, part.is_counted) for part in found] == [(1000, True), (9, True), (5, True)]
    assert sorted(fetched(tmp_path)) == ["few.jsonl", "law.csv"]
    assert "fetched 1 file of http://" in caplog.text


def test_a_large_file_that_was_fetched_before_is_read_from_the_cache(server, tmp_path):
    server.files["/law.jsonl"] = (LINES, '"1"')
    source = cache.RemoteSource(
        address=f"{server.address}/law.jsonl", key="data.domains.law.train", cache_dir=tmp_path / "cache"
    )
    cache.fetch_files(source)
    (found,) = sample([source.address], tmp_path)
    assert (found.num_rows, found.is_counted) == (len(ROWS), True)
    assert server.num_reads == {"/law.jsonl": 1}
