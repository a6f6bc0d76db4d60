"""Answers of web servers that are not what was asked for never become data, and secrets are in no message."""

from __future__ import annotations

import http.client
import re
import socket
import time
import urllib.error

import pytest
from remote_files import CONTENT, HALF, KEY, complete_files, find

from versatune_ds.config import DataConfig
from versatune_ds.data.remote import cache, fetch, http_store
from versatune_ds.data.remote.addresses import quoted, redacted, without_secrets
from versatune_ds.data.remote.errors import RemoteUnreachableError, remote_errors
from versatune_ds.data.remote.source import RemoteSource, user_error
from versatune_ds.data.sources.domain_files import domain_files
from versatune_ds.data.sources.find_files import find_files


def test_an_answer_that_breaks_off_is_noticed_where_the_size_of_the_file_is_not_stated(server, tmp_path):
    server.states_total = False
    server.breaks_after = [HALF]
    assert find(server, tmp_path)[0].read_bytes() == CONTENT
    assert server.num_reads == {"/law.jsonl": 2}


@pytest.mark.parametrize("stated", [None, "bytes 7-9/20", "rows 1-2/3"])
def test_a_part_that_begins_elsewhere_than_asked_for_is_refused(server, tmp_path, monkeypatch, stated):
    server.ignores_start = True
    server.breaks_after = [HALF]
    if stated is not None:
        monkeypatch.setattr(http_store.email.message.Message, "get", _with_range(stated))
    with pytest.raises(ValueError, match=rf"^{KEY}: .*answered with another part of it \(.*\) than from {HALF}"):
        find(server, tmp_path)
    assert complete_files(tmp_path) == []


def _with_range(stated):
    get = http_store.email.message.Message.get

    def get_with_range(self, name, default=None):
        value = get(self, name, default)
        return stated if name == "Content-Range" and value and not value.startswith("bytes 0-0/") else value

    return get_with_range


def test_a_part_of_a_file_of_another_size_is_not_appended(server, tmp_path):
    server.files["/law.jsonl"] = (CONTENT, None)  # no ETag: only the size can be compared
    server.breaks_after = [HALF]

    def grow(path):
        if not server.breaks_after:
            server.files[path] = (CONTENT[::-1] + b"{}\n", None)

    server.on_read = grow
    assert find(server, tmp_path)[0].read_bytes() == CONTENT[::-1] + b"{}\n"


def test_a_file_that_arrives_compressed_is_refused_unless_that_is_its_own_compression(server, tmp_path):
    server.headers = {"Content-Encoding": "gzip"}
    with pytest.raises(ValueError, match=r"law.jsonl: the server sends it compressed \(Content-Encoding: gzip\)"):
        find(server, tmp_path)
    server.files["/law.jsonl.gz"] = (CONTENT, '"gz"')
    assert find(server, tmp_path, "/law.jsonl.gz")[0].read_bytes() == CONTENT


def test_a_file_behind_a_redirect_is_fetched_and_a_refused_redirect_shows_no_query(server, tmp_path, caplog):
    caplog.set_level("INFO")
    server.redirects["/moved.jsonl"] = f"{server.address}/law.jsonl?sig=hidden"
    assert find(server, tmp_path, "/moved.jsonl")[0].read_bytes() == CONTENT
    server.redirects["/refused.jsonl"] = "ldap://user@host/law.jsonl?sig=hidden"
    with pytest.raises(ValueError, match=r"refused.jsonl cannot be read") as error:
        find(server, tmp_path, "/refused.jsonl")
    assert "hidden" not in caplog.text + str(error.value)


def test_addresses_with_spaces_and_letters_beyond_ascii_are_encoded(server, tmp_path):
    server.files["/g%C3%A4rten%20a.jsonl"] = (CONTENT, '"1"')
    assert find(server, tmp_path, "/gärten a.jsonl?sig=x y")[0].read_bytes() == CONTENT
    assert quoted("https://bücher.de:80/a%20b?x=%C3&y=1/2") == "https://xn--bcher-kva.de:80/a%20b?x=%C3&y=1/2"


def test_secrets_are_left_out_of_texts_and_patterns_of_paths_stay():
    assert redacted("https://host/a.jsonl?sig=hidden#x") == "https://host/a.jsonl"
    text = '{"a": ["HTTPS://u:hidden@h/x.jsonl?sig=hidden", "s3://b/x?.jsonl"]}\nb: http://h/y#hidden\n'
    assert without_secrets(text) == '{"a": ["HTTPS://h/x.jsonl", "s3://b/x?.jsonl"]}\nb: http://h/y\n'
    with pytest.raises(ValueError, match=r"^data.folder: https://host/data: folders of a web server") as error:
        domain_files(DataConfig(folder="https://host/data?sig=hidden"), cache_dir=None)
    assert "hidden" not in str(error.value)


def test_mistakes_in_code_are_not_taken_for_a_missing_network():
    for kind in (KeyError, TypeError, ValueError, AssertionError):
        with pytest.raises(kind), remote_errors():
            raise kind("mistake")
    for error in (OSError("x"), TimeoutError("x"), http.client.IncompleteRead(b"")):
        with pytest.raises(RemoteUnreachableError), remote_errors():
            raise error


def test_repetitions_are_counted_from_one_again_once_enough_has_arrived(server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "PROGRESS_BYTES", 1000)
    server.breaks_after = [1000] * 20
    assert find(server, tmp_path)[0].read_bytes() == CONTENT
    assert server.num_reads == {"/law.jsonl": 21}
    server.files["/law.jsonl"] = (CONTENT, '"two"')
    server.has_ranges = False
    server.breaks_after = [1000] * 20  # from its beginning each time: no progress after the first
    with pytest.raises(ValueError, match="cannot be read"):
        find(server, tmp_path)


def test_where_nothing_answers_the_store_is_asked_in_one_series_and_the_line_names_host_and_port(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(cache, "PAUSES_SECONDS", [0.0, 0.0])
    monkeypatch.setenv("no_proxy", "*")
    cache.forget_checks()
    with socket.socket() as bound:  # bound and not listening: the port is refused, and no one else's
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        for name in ("law", "law", "code"):
            line = f"{KEY}: http://127.0.0.1:{port}/{name}.jsonl: nothing answers at host 127.0.0.1, port {port} ("
            with pytest.raises(ValueError, match=re.escape(line) + ".*refused.*; correct the address, or start the"):
                find_files([f"http://127.0.0.1:{port}/{name}.jsonl"], key=KEY, cache_dir=tmp_path)
    assert caplog.text.count("trying again") == 2
    now = time.monotonic()
    monkeypatch.setattr(cache.time, "monotonic", lambda: now + 61)  # a minute later it is asked again
    with pytest.raises(ValueError, match="nothing answers"):
        find_files([f"http://127.0.0.1:{port}/law.jsonl"], key=KEY, cache_dir=tmp_path)
    assert caplog.text.count("trying again") == 4


def test_an_unknown_host_is_a_wrong_address_unless_a_proxy_was_asked_or_no_name_server_answered(monkeypatch):
    source = RemoteSource(address="https://data.invalid/law.jsonl", key=KEY, cache_dir=None)

    def line_of(number):
        with pytest.raises(RemoteUnreachableError) as raised, remote_errors():
            raise urllib.error.URLError(socket.gaierror(number, "no name"))
        return str(user_error(raised.value, source=source))

    monkeypatch.delenv("https_proxy", raising=False)
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    wrong = "data.invalid/law.jsonl: unknown host data.invalid (port 443) ([Errno -2] no name); correct the address, or"
    assert wrong in line_of(socket.EAI_NONAME)
    assert "cannot be read ([Errno -3] no name); check the network" in line_of(socket.EAI_AGAIN)
    monkeypatch.setenv("https_proxy", "http://proxy:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert "check the network" in line_of(socket.EAI_NONAME)


def test_one_file_that_a_server_cannot_give_does_not_hide_its_others(server, tmp_path):
    server.files["/code.jsonl"] = (CONTENT, '"1"')
    cache.forget_checks()
    server.failures = [503] * 4
    for _ in range(2):
        with pytest.raises(ValueError, match="503"):
            find_files([server.address + "/law.jsonl"], key=KEY, cache_dir=tmp_path)
    assert server.failures == []
    assert find_files([server.address + "/code.jsonl"], key=KEY, cache_dir=tmp_path)[0].read_bytes() == CONTENT
