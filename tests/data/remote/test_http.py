"""Files of a web server are fetched once, completely or not at all, and again when they change."""

from __future__ import annotations

import json
import multiprocessing
import os
import time

import pytest
from remote_files import CONTENT, KEY, complete_files, find

from versatune_ds.data.remote import cache, fetch
from versatune_ds.data.sources.find_files import find_files


def test_a_file_is_fetched_once_and_keeps_its_name(server, tmp_path):
    (path,) = find(server, tmp_path)
    assert (path.name, path.read_bytes()) == ("law.jsonl", CONTENT)
    assert find(server, tmp_path) == (path,)
    assert server.num_reads == {"/law.jsonl": 1}


def test_a_changed_file_is_fetched_again_and_the_earlier_one_is_kept_while_it_may_be_in_use(server, tmp_path):
    (before,) = find(server, tmp_path)
    server.files["/law.jsonl"] = (CONTENT[::-1], '"two"')  # of the same size
    (path,) = find(server, tmp_path)
    assert path.read_bytes() == CONTENT[::-1]
    assert before.read_bytes() == CONTENT
    long_ago = time.time() - (fetch.UNUSED_DAYS + 1) * 86_400
    for version in (before, path):
        os.utime(version.parent, (long_ago, long_ago))
    assert find(server, tmp_path) == (path,)  # in use again
    server.files["/law.jsonl"] = (CONTENT[:-1], '"three"')
    (newest,) = find(server, tmp_path)
    assert sorted(complete_files(tmp_path)) == sorted([path, newest])


@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_connection_that_drops_half_way_is_resumed_or_restarted(server, tmp_path, has_ranges, caplog):
    server.has_ranges = has_ranges
    server.breaks_after = [len(CONTENT) // 2, 1000]
    (path,) = find(server, tmp_path)
    assert path.read_bytes() == CONTENT
    assert server.num_reads == {"/law.jsonl": 3}
    assert f"the connection ended after {len(CONTENT) // 2:,} of {len(CONTENT):,} bytes; trying again" in caplog.text


def test_a_connection_that_always_drops_leaves_nothing_that_looks_complete(server, tmp_path):
    server.breaks_after = [10] * 20
    with pytest.raises(
        ValueError, match=rf"^{KEY}: http://.*/law.jsonl cannot be read \(the connection ended after 40 "
    ):
        find(server, tmp_path)
    assert complete_files(tmp_path) == []
    server.breaks_after = []
    assert find(server, tmp_path)[0].read_bytes() == CONTENT


def test_a_file_that_changes_while_it_is_fetched_is_fetched_in_one_version(server, tmp_path, caplog):
    def change(path):
        server.files[path] = (b"{}\n" * 1000, '"two"')
        server.on_read = lambda path: None

    server.on_read = change
    (path,) = find(server, tmp_path)
    assert path.read_bytes() == b"{}\n" * 1000
    assert "changed while it was fetched; fetching it again" in caplog.text
    server.files["/law.jsonl"] = (CONTENT, '"three"')
    server.breaks_after = [len(CONTENT) // 2]

    def change_after_the_break(path):
        if server.breaks_after == []:
            server.files[path] = (CONTENT[::-1], '"four"')

    server.on_read = change_after_the_break
    assert find(server, tmp_path)[0].read_bytes() == CONTENT[::-1]


def test_a_file_that_changes_just_before_its_end_is_not_taken_for_the_earlier_version(server, tmp_path):
    server.files["/law.jsonl"] = (CONTENT, None)  # no ETag: only the size can be compared

    def grow(path):
        server.files[path] = (CONTENT + b"{}\n", None)

    server.on_read = grow
    assert find(server, tmp_path)[0].read_bytes() == CONTENT + b"{}\n"


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (404, r"no such file or folder: http://127.*/law.jsonl; correct the address"),
        (403, r"http://127.*/law.jsonl: access denied \(.*403.*\); no credentials are sent for http://"),
        (401, r"access denied \(.*401.*\)"),
        (500, r"http://127.*/law.jsonl cannot be read \(.*500.*\); check the network, then start again"),
    ],
)
def test_a_refusal_is_one_line_with_the_reason(server, tmp_path, status, line):
    server.failures = [status] * 20
    with pytest.raises(ValueError, match=f"^{KEY}: .*{line}") as error:
        find(server, tmp_path)
    assert "\n" not in str(error.value)


def test_a_server_that_fails_for_a_while_is_asked_again(server, tmp_path, caplog):
    server.failures = [500, 503]
    assert find(server, tmp_path)[0].read_bytes() == CONTENT
    assert "trying again in 0 s (2 of 3)" in caplog.text


def test_without_a_network_the_files_fetched_before_are_used_and_that_is_logged(server, tmp_path, caplog):
    (path,) = find(server, tmp_path)
    server.failures = [503] * 20
    assert find(server, tmp_path) == (path,)
    assert "cannot be reached (HTTP Error 503: Service Unavailable), so whether it changed is not known" in caplog.text
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match="cannot be read"):
        find(server, tmp_path)
    server.failures = []
    assert find(server, tmp_path)[0].read_bytes() == CONTENT


def test_a_server_that_was_not_reached_is_not_asked_again_for_what_is_in_the_cache(server, tmp_path, monkeypatch):
    server.files["/code.jsonl"] = (CONTENT, '"1"')
    paths = [*find(server, tmp_path), *find(server, tmp_path, "/code.jsonl")]
    cache.forget_checks()
    server.failures = [503, 503]  # the file of the second source would be answered again
    server.files.clear()
    sources = [f"{server.address}/law.jsonl", f"{server.address}/code.jsonl"]
    assert list(find_files(sources, key=KEY, cache_dir=tmp_path)) == paths
    assert server.failures == []


def test_a_file_that_is_gone_is_an_error_even_if_it_was_fetched(server, tmp_path):
    find(server, tmp_path)
    server.files.clear()
    with pytest.raises(ValueError, match="no such file or folder"):
        find(server, tmp_path)


def test_a_server_that_states_no_size_is_refused(server, tmp_path):
    server.states_length = server.has_ranges = False
    with pytest.raises(ValueError, match="does not state the file's size, so a broken download would look complete"):
        find(server, tmp_path)
    assert complete_files(tmp_path) == []


def test_an_empty_file_and_one_without_a_version_are_fetched(server, tmp_path, caplog):
    server.files["/empty.jsonl"] = (b"", '"e"')
    assert find(server, tmp_path, "/empty.jsonl")[0].read_bytes() == b""
    server.files["/plain.jsonl"] = (b"{}\n", None)
    assert find(server, tmp_path, "/plain.jsonl")[0].read_bytes() == b"{}\n"
    assert "states neither an ETag nor a time" in caplog.text


def test_a_query_is_sent_and_is_in_no_message_and_no_file(server, tmp_path, caplog):
    caplog.set_level("INFO")
    (path,) = find(server, tmp_path, "/law.jsonl?signature=hidden")
    assert (path.name, path.read_bytes()) == ("law.jsonl", CONTENT)
    server.failures = [503] * 20
    assert find(server, tmp_path, "/law.jsonl?signature=hidden") == (path,)
    records = [path.read_text() for path in (tmp_path / "remote").glob("*.json")]
    assert "hidden" not in caplog.text + "".join(records)
    assert json.loads(records[0])["address"] == f"{server.address}/law.jsonl"


def _find_in_process(address, folder, barrier, paths):
    barrier.wait()
    paths.put(find_files([address], key=KEY, cache_dir=folder)[0].read_bytes() == CONTENT)


def test_several_processes_fetch_a_file_once(server, tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, found = context.Barrier(3), context.Queue()
    arguments = (f"{server.address}/law.jsonl", tmp_path, barrier, found)
    processes = [context.Process(target=_find_in_process, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    assert [found.get(timeout=60) for _ in processes] == [True, True, True]
    for process in processes:
        process.join()
    assert server.num_reads == {"/law.jsonl": 1}


def test_a_process_beside_the_first_of_its_node_takes_what_that_one_fetched(server, tmp_path, monkeypatch):
    (path,) = find(server, tmp_path)
    server.files["/law.jsonl"] = (CONTENT * 2, '"two"')
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setitem(os.environ, name, value)
    assert find(server, tmp_path) == (path,)
    monkeypatch.setitem(os.environ, "RANK", "0")
    monkeypatch.setitem(os.environ, "LOCAL_RANK", "0")
    assert find(server, tmp_path)[0].read_bytes() == CONTENT * 2


def test_a_full_disk_is_noticed_before_anything_is_fetched(server, tmp_path, monkeypatch):
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 10})())
    with pytest.raises(ValueError, match=r"needs 0.0 GiB, .* has 0.0 GiB free; make room, or set data.cache_dir"):
        find(server, tmp_path)
    assert server.num_reads == {}


@pytest.mark.parametrize(
    ("address", "line"),
    [
        ("https://h/x*.jsonl", "files of a web server cannot be listed; list every file"),
        ("https://user:word@h/x.jsonl", "https://h/x.jsonl: a password in an address would be written"),
        ("https://h/download?id=3", "https://h/download: unknown format; expected an address that ends in one of"),
        ("ftp://h/x.jsonl", "ftp://h/x.jsonl: unknown scheme; known: s3, gs, hf, https, http"),
        ("gcs://b/x.jsonl", "unknown scheme; did you mean 'gs'"),
        ("file:///x.jsonl", "write a file of this machine as a path, without file://"),
    ],
)
def test_an_address_that_cannot_be_read_is_refused_in_one_line(tmp_path, address, line, monkeypatch):
    monkeypatch.setattr(cache, "open_store", _store_without_network(cache.open_store))
    with pytest.raises(ValueError, match=f"^{KEY}: ") as error:
        find_files([address], key=KEY, cache_dir=tmp_path)
    assert line in str(error.value)


def _store_without_network(open_store):
    class Offline:
        def info(self, address):
            return cache.RemoteFile(address=address, num_bytes=1, version="1")

    def open_offline(address, *, key):
        open_store(address, key=key)
        return Offline()

    return open_offline
